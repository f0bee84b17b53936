"""Draws training rows: passages with questions, random tokens to copy, books, SQuAD, bAbI."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from remanence.data.facts import TRAIN, sample_group
from remanence.data.phrasings import KINDS, attributes
from remanence.data.wordlists import words, words_of
from remanence.train.corpora import Corpora
from remanence.train.recipes.nano import Phase
from remanence.train.tokenizer import generator_texts

RENAMED_SHARE = 0.8
WORD = re.compile(r"[A-Za-z]{3,}")
KEPT_WORDS = frozenset(
    "the and for with near under behind above next outside opposite beside because "
    "what which who whose whom when where why how tell miles per hour knots "
    "january february march april may june july august september october november december "
    "monday tuesday wednesday thursday friday saturday sunday".split()
)
"""Words that stay: without them the answer would not be of its kind."""


@dataclass
class Row:
    """Texts of one row before they become tokens: references, then (question, answer) pairs.

    `plain` is a row without structure: a stretch of text that is learned as it stands; `ids` a ready row.
    """

    references: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    plain: str = ""
    ids: list[int] = field(default_factory=list)


def draw_row(rng: Random, phase: Phase, corpora: Corpora, vocab_size: int, split: str = TRAIN) -> Row:
    """One row of the phase's mixture; an empty corpus gives its share to the generator."""
    pick = rng.random()
    for share, ready, make in (
        (phase.drill, True, lambda: _drill(rng, phase.tokens, vocab_size)),
        (phase.books, corpora.paragraphs, lambda: _book(rng, corpora)),
        (phase.squad, corpora.contexts, lambda: _squad(rng, phase, corpora)),
        (phase.babi, corpora.stories, lambda: _babi(rng, phase, corpora)),
    ):
        if pick < share and ready:
            return make()
        pick -= share
    row = facts_row(rng, phase, split)
    return renamed(rng, row, corpora) if split == TRAIN else row


def facts_row(rng: Random, phase: Phase, split: str) -> Row:
    """Passages of the generator; a question is never asked twice of the same fact."""
    while True:
        example = sample_group(
            rng, rng.randint(*phase.passages), split, max_facts=phase.facts, filler=phase.filler, alike=phase.alike
        )
        if example.questions:
            pairs = [(question.text, question.answer) for question in example.questions]
            return Row([passage.text for passage in example.passages], pairs)


def renamed(rng: Random, row: Row, corpora: Corpora, share: float = RENAMED_SHARE) -> Row:
    """The row with names, words of answers and verbs exchanged for others of any book, wherever they stand in it.

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
            exchange[word] = _like(word, _other(rng, corpora.lexicon, taken))
    for base, past in verbs():
        if past in told and corpora.verbs and rng.random() < share:
            exchange[base], exchange[past] = rng.choice(corpora.verbs)
    if not exchange:
        return row
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, exchange)) + r")\b")

    def change(text: str) -> str:
        return pattern.sub(lambda match: exchange[match[0]], text)

    return Row([change(text) for text in row.references], [(change(q), change(a)) for q, a in row.pairs])


def _other(rng: Random, lexicon: Sequence[str], taken: set[str]) -> str:
    """A word that the row does not have yet, if one of ten is; marks it as taken."""
    drawn = [rng.choice(lexicon) for _ in range(10)]
    word = next((word for word in drawn if word not in taken), drawn[0])
    taken.add(word)
    return word


def _names(question: str) -> list[str]:
    """Its words that name a subject or an object: with a capital and not in front, or on a list of things."""
    return [word for word in WORD.findall(question.partition(" ")[2]) if word[0].isupper() or word in things()]


@cache
def fixed_words() -> frozenset[str]:
    """Lower-case words that stay: those of wordings and units, and `KEPT_WORDS`."""
    sections = ("unit_weight", "unit_length", "currency")
    texts = [entry for name in sections for entry in words(name)]
    for attribute in (attribute for kind in KINDS for attribute in attributes(kind)):
        texts += [*attribute.train.states, *attribute.train.asks, *attribute.train.asks_subject]
    return KEPT_WORDS | {word.lower() for text in texts for word in WORD.findall(text)}


@cache
def things() -> frozenset[str]:
    """The generator's things, animals and foods that are one word."""
    sections = ("noun", "object", "object_one", "animal", "food", "event_noun")
    return frozenset(entry for name in sections for entry in words(name) if WORD.fullmatch(entry))


@cache
def verbs() -> tuple[tuple[str, str], ...]:
    """(base, past) of the verbs of training that are single words of two forms, and words of no wording."""
    forms = (tuple(entry.split("/")) for entry in words_of("verb", TRAIN) if " " not in entry)
    return tuple((base, past) for base, past in forms if base != past and not {base, past} & fixed_words())


def _like(word: str, other: str) -> str:
    return other.capitalize() if word[0].isupper() else other


def _drill(rng: Random, tokens: int, vocab_size: int) -> Row:
    """Random tokens, then stretches of them again: what follows a token is what followed it before."""
    first = [rng.randrange(3, vocab_size) for _ in range(rng.randint(tokens // 8, tokens // 2 - 2))]
    ids = list(first)
    while len(ids) < tokens:
        start = rng.randrange(len(first) - 4)
        ids += first[start : start + rng.randint(4, 16)]
    return Row(ids=ids[:tokens])


def _book(rng: Random, corpora: Corpora) -> Row:
    start = rng.randrange(len(corpora.paragraphs))
    return Row(plain=" ".join(corpora.paragraphs[start : start + 4]))


def _squad(rng: Random, phase: Phase, corpora: Corpora) -> Row:
    """Sentences of one context around an answer, cut to the length of a reference; other contexts beside it."""
    context = rng.choice(corpora.contexts)
    text, pairs = _window(rng, context.text, [(question, answers[0]) for question, answers in context.questions])
    others = [_window(rng, rng.choice(corpora.contexts).text, [])[0] for _ in range(rng.randint(*phase.passages) - 1)]
    references = [text, *others]
    rng.shuffle(references)
    return Row(references, pairs)


def _window(rng: Random, text: str, pairs: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """Up to 45 words of whole sentences, and the pairs whose answer is in them."""
    sentences = re.split(r"(?<=[.!?]) ", text)
    start = rng.randrange(len(sentences))
    chosen = sentences[start]
    for sentence in sentences[start + 1 :]:
        if len(chosen.split()) + len(sentence.split()) > 45:
            break
        chosen += " " + sentence
    chosen = " ".join(chosen.split()[:60])
    return chosen, [pair for pair in pairs if pair[1] in chosen and len(pair[1].split()) <= 6]


def _babi(rng: Random, phase: Phase, corpora: Corpora) -> Row:
    story = rng.choice(corpora.stories)
    return Row([" ".join(story.text.split()[-60:])], [(story.question, story.answer)])


class Encoder:
    """Turns texts into token ids, all texts of a batch in one call."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        self.bos: int = self.tokenizer.bos_token_id
        self.pad: int = self.tokenizer.pad_token_id
        self.header = [self.bos, *self("Reference:")[0]]

    @cached_property
    def frequent(self) -> frozenset[int]:
        """Tokens that make up more than 0.15 % of the generator's text: no help in telling passages apart."""
        counts = Counter(token for ids in self(*generator_texts(0, 300)) for token in ids)
        return frozenset(token for token, count in counts.items() if count > 0.0015 * counts.total())

    def __call__(self, *texts: str) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), False)]
