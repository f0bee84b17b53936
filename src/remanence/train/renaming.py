"""Exchanges the names and words of answers of a training row for others, wherever they stand in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from remanence.data.phrasings import KINDS, attributes
from remanence.data.wordlists import words
from remanence.train.corpora import Corpora, is_kept
from remanence.train.row import Row

RENAMED_SHARE = 0.8
PIECES_SHARE = 0.4
WORD = re.compile(r"[A-Za-z]{3,}")
KEPT_WORDS = frozenset(
    "the and for with near under behind above next outside opposite beside because "
    "what which who whose whom when where why how tell miles per hour knots "
    "january february march april may june july august september october november december "
    "monday tuesday wednesday thursday friday saturday sunday".split()
)
"""Words that stay: without them the answer would not be of its kind."""


@dataclass(frozen=True)
class Pieces:
    """Tokens that words are made of: `starts` in small letters, `capitals`, and `rests`, which go on inside a word.

    A model of this size learns to copy token by token: one that never began an answer is not copied. Words put
    together from pieces give every token of the vocabulary its turn.
    """

    starts: Sequence[str] = ()
    capitals: Sequence[str] = ()
    rests: Sequence[str] = ()

    def word(self, rng: Random, capital: bool) -> str:
        """One start and up to three rests, three letters or more; never a word that is kept for evaluation, nor
        one that wordings are made of."""
        while True:
            rests = rng.choices(self.rests, k=rng.choice((0, 1, 1, 2, 2, 3)))
            word = rng.choice(self.capitals if capital else self.starts) + "".join(rests)
            if WORD.fullmatch(word) and not is_kept(word) and word.lower() not in fixed_words():
                return word


def renamed(rng: Random, row: Row, corpora: Corpora, pieces: Pieces, share: float = RENAMED_SHARE) -> Row:
    """The row with names and words of answers exchanged for others of any book, wherever they stand in it.

    The generator's lists are short and each of their words is one token: without this a model learns them by
    heart, and finds and copies no word beyond them, which has several tokens. What words wordings are made of stays.
    """
    if not corpora.lexicon:
        return row
    found = [word for _, answer in row.pairs for word in WORD.findall(answer)]
    found += [word for question, _ in row.pairs for word in _names(question)]
    told = {word for text in row.references for word in WORD.findall(text)}
    taken = {word.lower() for word in told}
    exchange: dict[str, str] = {}
    for word in dict.fromkeys(found):
        if word.lower() not in fixed_words() and rng.random() < share:
            exchange[word] = _other(rng, word[0].isupper(), corpora, pieces, taken)
    if not exchange:
        return row
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, exchange)) + r")\b")

    def change(text: str) -> str:
        return pattern.sub(lambda match: exchange[match[0]], text)

    pairs = [(change(question), change(answer)) for question, answer in row.pairs]
    return Row([change(text) for text in row.references], pairs, row.places)


def _other(rng: Random, capital: bool, corpora: Corpora, pieces: Pieces, taken: set[str]) -> str:
    """A word that the row does not have yet, if one of ten is; marks it as taken."""
    drawn = [_word(rng, capital, corpora, pieces) for _ in range(10)]
    word = next((word for word in drawn if word.lower() not in taken), drawn[0])
    taken.add(word.lower())
    return word


def _word(rng: Random, capital: bool, corpora: Corpora, pieces: Pieces) -> str:
    """A word of books, a name of books where a capital is wanted, or pieces of words put together."""
    if rng.random() < PIECES_SHARE and pieces != Pieces():
        return pieces.word(rng, capital)
    if not capital:
        return rng.choice(corpora.lexicon)
    own = bool(corpora.names) and rng.random() < 0.5
    return rng.choice(corpora.names) if own else rng.choice(corpora.lexicon).capitalize()


def _names(question: str) -> list[str]:
    """Its words that name a subject or an object: with a capital and not in front, or on a list of things."""
    return [word for word in WORD.findall(question.partition(" ")[2]) if word[0].isupper() or word in things()]


@cache
def fixed_words() -> frozenset[str]:
    """Lower-case words that stay: those of wordings and units, and `KEPT_WORDS`."""
    sections = ("unit_weight", "unit_length", "currency")
    texts = [entry for name in sections for entry in words(name)]
    for attribute in (attribute for kind in KINDS for attribute in attributes(kind)):
        said = attribute.practice
        texts += [*said.states, *said.asks, *said.asks_subject]
    return KEPT_WORDS | {word.lower() for text in texts for word in WORD.findall(text)}


@cache
def things() -> frozenset[str]:
    """The generator's things, animals and foods that are one word."""
    sections = ("noun", "object", "object_one", "animal", "food", "event_noun")
    return frozenset(entry for name in sections for entry in words(name) if WORD.fullmatch(entry))
