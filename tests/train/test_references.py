"""References found fast are those found the obvious way; none comes from the sequence's own place."""

from __future__ import annotations

from random import Random

import pytest

from remanence.errors import InputError
from remanence.lm.tiny import byte_tokenizer
from remanence.text.words import terms
from remanence.train.examples.references import Cutting, Text, find_references, hidden, lay_out
from tests.reference.references import references

WORDS = "harbour boat keeper lantern storm letter garden bridge winter market".split()
CUTTING = Cutting(sequence_tokens=64, chunk_tokens=16, reference_tokens=32, overlap_limit=0.7, depth=3)
TOKENIZER = byte_tokenizer()


def story(rng: Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def laid_out(seed: int) -> Text:
    """Documents of many lengths, one of them there twice: its copy is what the filter is for."""
    rng = Random(seed)
    texts = [story(rng, rng.choice((1, 3, 12, 30))) for _ in range(7)]
    texts[5] = texts[2]
    documents = [TOKENIZER.encode(text, add_special_tokens=False) for text in texts]
    return lay_out(documents, CUTTING, [1], [2])


def decode(rows) -> list[str]:
    return TOKENIZER.batch_decode(rows, skip_special_tokens=True)


@pytest.mark.parametrize("seed", range(8))
def test_they_are_those_that_the_slow_way_finds(seed: int) -> None:
    text = laid_out(seed)
    stream = text.ids_N.tolist()
    spans = list(zip(text.first_R.tolist(), text.last_R.tolist(), strict=True))
    expected = references(
        stream,
        [text.document_at(place) for place in range(len(stream))],
        spans,
        (CUTTING.sequence_tokens, CUTTING.chunk_tokens),
        lambda ids: terms(TOKENIZER.decode(ids, skip_special_tokens=True)),
        CUTTING.overlap_limit,
        CUTTING.depth,
    )
    done: list[int] = []
    found = list(find_references(text, CUTTING, decode, done.append))
    assert [(each.references, each.rejected) for each in found] == expected
    assert [each.begin for each in found] == list(range(0, len(stream) - 63, 64))
    assert sum(done) == text.num_references + len(found)


def test_the_cases_above_hold_every_outcome() -> None:
    found = [each for seed in range(8) for each in find_references(laid_out(seed), CUTTING, decode)]
    assert any(each.references is None for each in found)
    assert any(each.references is not None and each.rejected for each in found)


def test_documents_stand_behind_each_other_and_references_never_reach_over_an_end() -> None:
    cutting = Cutting(sequence_tokens=8, chunk_tokens=4, reference_tokens=16)
    text = lay_out([list(range(10, 45)), [7], list(range(50, 67))], cutting, [1], [2])
    assert text.ids_N.tolist() == [1, *range(10, 45), 2, 1, 7, 2, 1, *range(50, 67), 2]
    cut = [text.reference(r) for r in range(text.num_references)]
    assert cut == [[*range(10, 26)], [*range(26, 42)], [42, 43, 44], [*range(50, 66)]]
    assert text.owner_R.tolist() == [0, 0, 0, 2]
    assert hidden(text, 0, 8) == range(0, 3)
    assert hidden(text, 24, 32) == range(1, 3), "text before it in its own document may be read"
    assert hidden(text, 32, 40) == range(1, 3), "a tail and a document without a reference"
    assert hidden(text, 40, 48) == range(3, 4)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="sequences of 100 tokens do not fall into chunks of 64"):
        Cutting(sequence_tokens=100)
