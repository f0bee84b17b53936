"""Draws training rows: passages with questions, random tokens to copy, books, SQuAD, bAbI."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from math import fsum
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from remanence.data.facts import PRACTICE, TRAIN, sample_group
from remanence.train.corpora import Corpora
from remanence.train.recipes.nano import Phase
from remanence.train.renaming import WORD, Pieces, renamed
from remanence.train.row import Row
from remanence.train.tokenizer import generator_texts

WORD_MARKS = ("Ġ", "▁")
"""What stands for the space in front of a word, in byte-level vocabularies and in those of SentencePiece."""


def draw_row(rng: Random, phase: Phase, corpora: Corpora, encoder: Encoder, split: str = TRAIN) -> Row:
    """One row of the phase's mixture; an empty corpus gives its share to the generator."""
    pick = rng.random()
    for share, ready, make in (
        (phase.drill, True, lambda: _drill(rng, phase.tokens, len(encoder.tokenizer))),
        (phase.books, corpora.paragraphs, lambda: book_row(rng, corpora.paragraphs, rng.randint(*phase.passages))),
        (phase.squad, corpora.contexts, lambda: _squad(rng, phase, corpora)),
        (phase.babi, corpora.stories, lambda: _babi(rng, phase, corpora)),
    ):
        if pick < share and ready:
            return make()
        pick -= share
    row = facts_row(rng, phase, PRACTICE if split == TRAIN else split)
    return renamed(rng, row, corpora, encoder.pieces) if split == TRAIN else row


def facts_row(rng: Random, phase: Phase, split: str) -> Row:
    """Passages of the generator; a question is never asked twice of the same fact."""
    while True:
        example = sample_group(
            rng, rng.randint(*phase.passages), split, max_facts=phase.facts, filler=phase.filler, alike=phase.alike
        )
        if example.questions:
            pairs = [(question.text, question.answer) for question in example.questions]
            places = [question.passage for question in example.questions]
            return Row([passage.text for passage in example.passages], pairs, places)


def _drill(rng: Random, tokens: int, vocab_size: int) -> Row:
    """Random tokens, then stretches of them again: what follows a token is what followed it before."""
    first = [rng.randrange(3, vocab_size) for _ in range(rng.randint(tokens // 8, tokens // 2 - 2))]
    ids = list(first)
    while len(ids) < tokens:
        start = rng.randrange(len(first) - 4)
        ids += first[start : start + rng.randint(4, 16)]
    return Row(ids=ids[:tokens])


def book_row(rng: Random, paragraphs: Sequence[str], num_references: int, before: int = 60) -> Row:
    """Running text, and of the `before` paragraphs in front of it those that share most of its rarer words.

    Near the first paragraph of a book they are of the book before. (`fsum`: a set has no order, so neither has a sum.)
    """
    start = rng.randrange(min(num_references, len(paragraphs) - 1), len(paragraphs))
    text, near = " ".join(paragraphs[start : start + 4]), paragraphs[max(0, start - before) : start]
    words = set(WORD.findall(text))
    counts = Counter(word for other in near for word in set(WORD.findall(other)) & words)
    worth = {i: fsum(1 / counts[word] for word in set(WORD.findall(near[i])) & words) for i in range(len(near))}
    chosen = sorted(worth, key=lambda i: -worth[i])[:num_references]
    return Row(references=[near[i] for i in chosen], plain=text)


def _squad(rng: Random, phase: Phase, corpora: Corpora) -> Row:
    """Sentences of one context around an answer, cut to the length of a reference; other contexts beside it."""
    context = rng.choice(corpora.contexts)
    text, pairs = _window(rng, context.text, [(question, answers[0]) for question, answers in context.questions])
    others = [_window(rng, rng.choice(corpora.contexts).text, [])[0] for _ in range(rng.randint(*phase.passages) - 1)]
    references = [text, *others]
    rng.shuffle(references)
    return Row(references, pairs, [references.index(text)] * len(pairs))


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
    return Row([" ".join(story.text.split()[-60:])], [(story.question, story.answer)], [0])


class Encoder:
    """Turns texts into token ids, all texts of a batch in one call."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        self.bos: int = self.tokenizer.bos_token_id
        pad = self.tokenizer.pad_token_id
        self.pad: int = 0 if pad is None else pad  # behind all text, which never sees it

    @cached_property
    def header(self) -> list[int]:
        return [self.bos, *self("Reference:")[0]]

    @cached_property
    def frequent(self) -> frozenset[int]:
        """Tokens that make up more than 0.15 % of the generator's text: no help in telling passages apart."""
        counts = Counter(token for ids in self(*generator_texts(0, 300)) for token in ids)
        return frozenset(token for token, count in counts.items() if count > 0.0015 * counts.total())

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end a sentence ("Dr." too): a full stop, question or exclamation mark and nothing but signs."""
        vocab: dict[str, int] = self.tokenizer.get_vocab()
        signs = ((token.removeprefix("Ġ"), number) for token, number in vocab.items())
        return frozenset(number for sign, number in signs if re.fullmatch(r"[^\w\s]*[.!?][^\w\s]*", sign))

    @cached_property
    def pieces(self) -> Pieces:
        """The letters-only tokens of a vocabulary that marks where words begin; none where it does not."""
        tokens = sorted(self.tokenizer.get_vocab())
        words = [token[1:] for token in tokens if token.startswith(WORD_MARKS)]
        starts = [word for word in words if word.isascii() and word.isalpha()]
        rests = [token for token in tokens if token.isascii() and token.isalpha() and token.islower()]
        small, capitals = ([word for word in starts if is_so(word)] for is_so in (str.islower, str.istitle))
        return Pieces(small, capitals, rests) if small and capitals and rests else Pieces()

    def __call__(self, *texts: str) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), False)]
