"""Training rows: what is exchanged for words of books, and that a row stays true to itself."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from remanence.data.squad import Context
from remanence.data.wordlists import words_of
from remanence.errors import InputError
from remanence.lm.folders import BUNDLED
from remanence.train.examples.corpora import Corpora, is_heldout_word, load_corpora
from remanence.train.examples.mixture import Encoder, Example, WordPieces, draw_example, fixed_words, renamed, things
from remanence.train.recipes.nano import NanoPhase

BOOK = "the lantern walked and walks; to embark is to be embarked, to linger is lingered. heat and heated. " * 5
BOOKS = Corpora(paragraphs=[BOOK])
NO_BOOKS = Corpora()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(PreTrainedTokenizerFast.from_pretrained(BUNDLED["nano"]))


def test_the_lexicon_has_no_word_that_is_kept_for_evaluation() -> None:
    assert "heat/heated" in words_of("verb", "heldout")
    assert {"lantern", "embark", "embarked"} <= set(BOOKS.lexicon)
    assert not {"heat", "heated"} & set(BOOKS.lexicon)


def test_an_exchange_is_the_same_in_passage_question_and_answer() -> None:
    row = Example(["Dora Keller painted the kettle in Fernton."], [("Who painted the kettle?", "Dora Keller")])
    other = renamed(Random(1), row, BOOKS, WordPieces(), share=1.0)
    (text,), ((question, answer),) = other.references, other.pairs
    assert text.startswith(f"{answer} ")
    assert "Dora" not in answer
    verb, thing = question.removeprefix("Who ").removesuffix("?").split(" the ")
    assert f"{verb} the {thing} in Fernton." in text
    assert verb == "painted"
    assert thing != "kettle"


def test_nothing_is_exchanged_without_books_or_by_chance_zero() -> None:
    row = Example(["Dora Keller lives in Fernton."], [("Where does Dora Keller live?", "Fernton")])
    assert renamed(Random(0), row, NO_BOOKS, WordPieces()) == row
    assert renamed(Random(0), row, BOOKS, WordPieces(), share=0.0) == row


def test_every_answer_stands_in_a_reference(encoder: Encoder) -> None:
    phase = NanoPhase(0, 1, 208, (2, 5), 3, squad=0.1)
    corpora = Corpora([Context("A dog barked. The cat slept.", (("What barked?", ("dog",)),))], [], [BOOK])
    for seed in range(200):
        row = draw_example(Random(seed), phase, corpora, encoder)
        assert all(any(answer in text for text in row.references) for _, answer in row.pairs)


def test_words_of_wordings_and_units_stay() -> None:
    asked = "How old is the kettle? Can you tell me the PIN of the kettle?"
    row = Example(
        ["The kettle is old, weighs 20 kilos and can boil."], [(asked, "20 kilos"), ("What can boil?", "kettle")]
    )
    other = renamed(Random(0), row, BOOKS, WordPieces(), share=1.0)
    thing = other.pairs[1][1]
    assert thing != "kettle"
    assert other.pairs[0] == (asked.replace("kettle", thing), "20 kilos")
    assert not {"old", "can", "called"} & things() - fixed_words()


def test_no_two_words_become_one() -> None:
    names = ["Dora", "Kelda", "Marek", "Tilda", "Pavel", "Yusuf"]
    row = Example([f"{name} lives here." for name in names], [(f"Where does {name} live?", name) for name in names])
    lexicon = Corpora(paragraphs=["alpha beta gamma delta omega kappa sigma theta lambda zeta " * 5])
    for seed in range(20):
        answers = [answer for _, answer in renamed(Random(seed), row, lexicon, WordPieces(), share=0.7).pairs]
        assert len(set(answers)) == len(names)


def test_question_words_stay() -> None:
    row = Example(["What Dora sent was tar."], [("Tell me: What did Dora send? Who knows What?", "tar")])
    ((question, _),) = renamed(Random(0), row, BOOKS, WordPieces(), share=1.0).pairs
    assert question.startswith("Tell me: What did ")
    assert question.endswith(" Who knows What?")


def test_ends_of_sentences_are_signs_alone(encoder: Encoder) -> None:
    signs = set(encoder.tokenizer.convert_ids_to_tokens(sorted(encoder.ends)))
    assert {".", "?", "!"} <= signs
    assert not any(character.isalnum() for sign in signs for character in sign.removeprefix("Ġ"))


def test_made_up_words_begin_with_any_token_and_none_is_kept_for_evaluation(encoder: Encoder) -> None:
    pieces, rng = encoder.pieces, Random(0)
    assert {"Meh", "J"} <= set(pieces.capitals)
    for capital, starts in ((True, pieces.capitals), (False, pieces.starts)):
        drawn = [pieces.word(rng, capital) for _ in range(10 * len(starts))]
        begun = {encoder.tokenizer.tokenize(f" {word}")[0].removeprefix("Ġ") for word in drawn}
        assert len(begun & set(starts)) > 0.9 * len(starts)
        assert not any(is_heldout_word(word) or word.lower() in fixed_words() or len(word) < 3 for word in drawn)
    assert is_heldout_word("heated")
    assert is_heldout_word("Promise")


def test_names_of_books_are_drawn_where_a_capital_was() -> None:
    books = Corpora(paragraphs=["the lantern, which Zuleika saw, and Zuleika kept, was for Zuleika. lantern " * 3])
    assert books.names == ["Zuleika"]
    row = Example(["Dora lives here."], [("Who lives here?", "Dora")])
    answers = {renamed(Random(seed), row, books, WordPieces(), share=1.0).pairs[0][1] for seed in range(30)}
    assert answers == {"Zuleika", "Lantern"}


def test_a_folder_without_corpora_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        load_corpora(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no corpus"):
        load_corpora(tmp_path)
    assert load_corpora(None) == NO_BOOKS
