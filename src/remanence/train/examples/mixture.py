"""Draws training examples (passages with questions, tokens to copy, books, SQuAD, bAbI) and renames their subjects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import fsum
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from remanence.data.facts import PRACTICE, TRAIN, sample_group
from remanence.data.phrasings import KINDS, attributes
from remanence.data.wordlists import words
from remanence.train.examples.corpora import Corpora, is_heldout_word
from remanence.train.examples.tokenizer import generator_texts
from remanence.train.recipes.nano import NanoPhase


@dataclass
class Example:
    """One training example as texts: references and (question, answer) pairs.

    `places[i]`: the index of the reference that answers pair i. Instead of these an example may be running `text`, or
    token `ids`.
    """

    references: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    text: str = ""
    ids: list[int] = field(default_factory=list)


RENAMED_SHARE = 0.8
"""Chance that a word of an answer is replaced."""
PIECES_SHARE = 0.4
"""Chance that the new word is put together from pieces."""
WORD = re.compile(r"[A-Za-z]{3,}")
FUNCTION_WORDS = frozenset(
    "the and for with near under behind above next outside opposite beside because "
    "what which who whose whom when where why how tell miles per hour knots "
    "january february march april may june july august september october november december "
    "monday tuesday wednesday thursday friday saturday sunday".split()
)
"""Words that are never replaced: without them an answer would not be of its kind."""


@dataclass(frozen=True)
class WordPieces:
    """Tokens that words are made of: `starts` in small letters, `capitals`, and `rests`, which continue a word.

    A small model learns to copy token by token, and does not copy a token that it never saw at the start of an answer.
    Words that are put together from pieces cover the whole vocabulary.
    """

    starts: Sequence[str] = ()
    capitals: Sequence[str] = ()
    rests: Sequence[str] = ()

    def word(self, rng: Random, capital: bool) -> str:
        """A start and up to three rests, of at least three letters; no held-out word and no word of a wording."""
        while True:
            rests = rng.choices(self.rests, k=rng.choice((0, 1, 1, 2, 2, 3)))
            word = rng.choice(self.capitals if capital else self.starts) + "".join(rests)
            if WORD.fullmatch(word) and not is_heldout_word(word) and word.lower() not in fixed_words():
                return word


def renamed(
    rng: Random, example: Example, corpora: Corpora, pieces: WordPieces, share: float = RENAMED_SHARE
) -> Example:
    """A copy of the example with names and words of answers replaced by others, from books, in all of its texts.

    The generator's lists are short and each of their words is one token: without this a model memorises them, and does
    not copy other words, which have several tokens. The words of wordings stay. Without books the example is returned.
    """
    if not corpora.lexicon:
        return example
    words = [word for _, answer in example.pairs for word in WORD.findall(answer)]
    words += [word for question, _ in example.pairs for word in _names(question)]
    present = {word for text in example.references for word in WORD.findall(text)}
    taken = {word.lower() for word in present}
    exchange: dict[str, str] = {}
    for word in dict.fromkeys(words):
        if word.lower() not in fixed_words() and rng.random() < share:
            exchange[word] = _other(rng, word[0].isupper(), corpora, pieces, taken)
    if not exchange:
        return example
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, exchange)) + r")\b")

    def change(text: str) -> str:
        return pattern.sub(lambda match: exchange[match[0]], text)

    pairs = [(change(question), change(answer)) for question, answer in example.pairs]
    return Example([change(text) for text in example.references], pairs, example.places)


def _other(rng: Random, capital: bool, corpora: Corpora, pieces: WordPieces, taken: set[str]) -> str:
    """A word that the example does not contain yet, if ten tries find one; it is added to `taken`."""
    drawn = [_word(rng, capital, corpora, pieces) for _ in range(10)]
    word = next((word for word in drawn if word.lower() not in taken), drawn[0])
    taken.add(word.lower())
    return word


def _word(rng: Random, capital: bool, corpora: Corpora, pieces: WordPieces) -> str:
    """A word of the books (with `capital`, maybe a name), or a word put together from pieces."""
    if rng.random() < PIECES_SHARE and pieces != WordPieces():
        return pieces.word(rng, capital)
    if not capital:
        return rng.choice(corpora.lexicon)
    own = bool(corpora.names) and rng.random() < 0.5
    return rng.choice(corpora.names) if own else rng.choice(corpora.lexicon).capitalize()


def _names(question: str) -> list[str]:
    """The words of a question that name a subject or an object: capitalised and not the first, or known things."""
    return [word for word in WORD.findall(question.partition(" ")[2]) if word[0].isupper() or word in things()]


@cache
def fixed_words() -> frozenset[str]:
    """Lower-case words that are never replaced: words of wordings and units, and `FUNCTION_WORDS`."""
    sections = ("unit_weight", "unit_length", "currency")
    texts = [entry for name in sections for entry in words(name)]
    for attribute in (attribute for kind in KINDS for attribute in attributes(kind)):
        wordings = attribute.practice
        texts += [*wordings.states, *wordings.asks, *wordings.asks_subject]
    return FUNCTION_WORDS | {word.lower() for text in texts for word in WORD.findall(text)}


@cache
def things() -> frozenset[str]:
    """The generator's things, animals and foods of one word."""
    sections = ("noun", "object", "object_one", "animal", "food", "event_noun")
    return frozenset(entry for name in sections for entry in words(name) if WORD.fullmatch(entry))


WORD_MARKS = ("Ġ", "▁")
"""The sign for the space in front of a word, in byte-level and in SentencePiece vocabularies."""


def draw_example(rng: Random, phase: NanoPhase, corpora: Corpora, encoder: Encoder, split: str = TRAIN) -> Example:
    """One example of the phase's mixture. The share of an empty corpus goes to the generator.

    Examples of a split other than "train" are not renamed.
    """
    pick = rng.random()
    for share, ready, make in (
        (phase.drill, True, lambda: _drill_example(rng, phase.tokens, len(encoder.tokenizer))),
        (phase.books, corpora.paragraphs, lambda: book_example(rng, corpora.paragraphs, rng.randint(*phase.passages))),
        (phase.squad, corpora.contexts, lambda: squad_example(rng, phase, corpora)),
        (phase.babi, corpora.stories, lambda: _babi_example(rng, phase, corpora)),
    ):
        if pick < share and ready:
            return make()
        pick -= share
    example = facts_example(rng, phase, PRACTICE if split == TRAIN else split)
    return renamed(rng, example, corpora, encoder.pieces) if split == TRAIN else example


def facts_example(rng: Random, phase: NanoPhase, split: str) -> Example:
    """Passages of the generator, with at most one question per fact."""
    while True:
        group = sample_group(
            rng, rng.randint(*phase.passages), split, max_facts=phase.facts, filler=phase.filler, alike=phase.alike
        )
        if group.questions:
            pairs = [(question.text, question.answer) for question in group.questions]
            places = [question.passage for question in group.questions]
            return Example([passage.text for passage in group.passages], pairs, places)


def _drill_example(rng: Random, tokens: int, vocab_size: int) -> Example:
    """Random tokens, then stretches of them again: the next token is the one that followed before."""
    first = [rng.randrange(3, vocab_size) for _ in range(rng.randint(tokens // 8, tokens // 2 - 2))]
    ids = list(first)
    while len(ids) < tokens:
        start = rng.randrange(len(first) - 4)
        ids += first[start : start + rng.randint(4, 16)]
    return Example(ids=ids[:tokens])


def book_example(rng: Random, paragraphs: Sequence[str], num_references: int, before: int = 60) -> Example:
    """Running text; its references are those of the `before` paragraphs before it that share most of its rare words.

    Near the start of a book these are of the book before. `fsum` makes the sums independent of the order of sets.
    """
    start = rng.randrange(min(num_references, len(paragraphs) - 1), len(paragraphs))
    text, near = " ".join(paragraphs[start : start + 4]), paragraphs[max(0, start - before) : start]
    words = set(WORD.findall(text))
    counts = Counter(word for other in near for word in set(WORD.findall(other)) & words)
    worth = {i: fsum(1 / counts[word] for word in set(WORD.findall(near[i])) & words) for i in range(len(near))}
    chosen = sorted(worth, key=lambda i: -worth[i])[:num_references]
    return Example(references=[near[i] for i in chosen], text=text)


def squad_example(rng: Random, phase: NanoPhase, corpora: Corpora) -> Example:
    """Sentences of a SQuAD context with its questions, as long as a reference, and parts of other contexts."""
    context = rng.choice(corpora.contexts)
    text, pairs = _window(rng, context.text, [(question, answers[0]) for question, answers in context.questions])
    others = [_window(rng, rng.choice(corpora.contexts).text, [])[0] for _ in range(rng.randint(*phase.passages) - 1)]
    references = [text, *others]
    rng.shuffle(references)
    return Example(references, pairs, [references.index(text)] * len(pairs))


def _window(rng: Random, text: str, pairs: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """(up to 45 words of whole sentences, the pairs whose answer is in them)."""
    sentences = re.split(r"(?<=[.!?]) ", text)
    start = rng.randrange(len(sentences))
    chosen = sentences[start]
    for sentence in sentences[start + 1 :]:
        if len(chosen.split()) + len(sentence.split()) > 45:
            break
        chosen += " " + sentence
    chosen = " ".join(chosen.split()[:60])
    return chosen, [pair for pair in pairs if pair[1] in chosen and len(pair[1].split()) <= 6]


def _babi_example(rng: Random, phase: NanoPhase, corpora: Corpora) -> Example:
    story = rng.choice(corpora.stories)
    return Example([" ".join(story.text.split()[-60:])], [(story.question, story.answer)], [0])


class Encoder:
    """Encodes texts, all of a batch in one call, without special tokens; and facts about the vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        self.bos: int = self.tokenizer.bos_token_id
        pad = self.tokenizer.pad_token_id
        self.pad: int = 0 if pad is None else pad  # behind all text, which does not attend to it

    @cached_property
    def header(self) -> list[int]:
        return [self.bos, *self("Reference:")[0]]

    @cached_property
    def frequent(self) -> frozenset[int]:
        """Tokens that make up more than 0.15 % of the generator's text: they do not distinguish passages."""
        counts = Counter(token for ids in self(*generator_texts(0, 300)) for token in ids)
        return frozenset(token for token, count in counts.items() if count > 0.0015 * counts.total())

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end a sentence (or "Dr."): punctuation with a full stop, question or exclamation mark."""
        vocab: dict[str, int] = self.tokenizer.get_vocab()
        signs = ((token.removeprefix("Ġ"), number) for token, number in vocab.items())
        return frozenset(number for sign, number in signs if re.fullmatch(r"[^\w\s]*[.!?][^\w\s]*", sign))

    @cached_property
    def pieces(self) -> WordPieces:
        """The letters-only tokens of a vocabulary that marks where words begin; empty for other vocabularies."""
        tokens = sorted(self.tokenizer.get_vocab())
        words = [token[1:] for token in tokens if token.startswith(WORD_MARKS)]
        starts = [word for word in words if word.isascii() and word.isalpha()]
        rests = [token for token in tokens if token.isascii() and token.isalpha() and token.islower()]
        small, capitals = ([word for word in starts if is_so(word)] for is_so in (str.islower, str.istitle))
        return WordPieces(small, capitals, rests) if small and capitals and rests else WordPieces()

    def __call__(self, *texts: str) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), False)]
