"""Packs rows into tensors of one fixed shape; batch number N of a run is always the same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import torch
from torch import Tensor

from remanence.data.facts import TRAIN
from remanence.train.corpora import Corpora
from remanence.train.losses import ANSWER, TEXT
from remanence.train.parallel import own
from remanence.train.recipes.nano import Phase
from remanence.train.row import Row
from remanence.train.rows import Encoder, book_row, draw_row, facts_row

TEXT_TOKENS, TEXT_REFERENCES = 208, 5
"""Of running text that is read for evaluation."""


@dataclass(frozen=True)
class Batch:
    """`kind_BT` says what each token is as a target: 0 nothing, TEXT or ANSWER. Padding is on the right."""

    ids_BT: Tensor
    kind_BT: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids_BT.to(device), self.kind_BT.to(device))


def plain_batch(seed: int, step: int, phase: Phase, corpora: Corpora, encoder: Encoder, split: str = TRAIN) -> Batch:
    """Rows with the references as text in front: `<s>Reference: {p}\\n …<s>Question: {q}\\nAnswer: {a}\\n…`."""
    rng = Random(f"{seed} {step} {split}")  # every process draws all rows and takes its own
    rows = own([draw_row(rng, phase, corpora, encoder, split) for _ in range(phase.rows)])
    return pack([plain_row(row, encoder, phase.tokens) for row in rows], phase.tokens, encoder.pad)


def heldout_batch(seed: int, rows: int, tokens: int, passages: int, facts: int, encoder: Encoder) -> Batch:
    """Generator rows from the words and wordings that training never sees."""
    phase = Phase(0, rows, tokens, (passages, passages), facts)
    rng = Random(f"heldout {seed} {passages}")
    drawn = [facts_row(rng, phase, "heldout") for _ in range(rows)]
    return pack([plain_row(row, encoder, tokens) for row in drawn], tokens, encoder.pad)


def text_rows(seed: int, rows: int, corpora: Corpora) -> list[Row]:
    """Rows of books that are kept for evaluation, with paragraphs before them as references."""
    rng = Random(f"text {seed}")
    return [book_row(rng, corpora.kept_paragraphs, TEXT_REFERENCES) for _ in range(rows)]


def text_batch(rows: list[Row], encoder: Encoder) -> Batch:
    """Rows of running text without their references."""
    return pack([plain_row(row, encoder, TEXT_TOKENS) for row in rows], TEXT_TOKENS, encoder.pad)


def plain_row(row: Row, encoder: Encoder, tokens: int) -> tuple[list[int], list[int]]:
    """(ids, kinds) of at most `tokens` tokens; questions that do not fit are left out."""
    if row.ids:
        return row.ids, drill_kinds(row.ids)
    if row.plain:
        ids = [encoder.bos, *encoder(row.plain)[0]][:tokens]
        return ids, [TEXT] * len(ids)
    references = [id for ids in encoder(*(f" {text}\n" for text in row.references)) for id in ids]
    ids = [*encoder.header, *references]
    kinds = [TEXT] * len(ids)
    return with_questions(row, encoder, tokens, ids, kinds)


def with_questions(
    row: Row, encoder: Encoder, tokens: int, ids: list[int], kinds: list[int]
) -> tuple[list[int], list[int]]:
    """Appends `<s>` and as many question-answer pairs as fit."""
    ids, kinds = [*ids, encoder.bos], [*kinds, 0]
    asked = encoder(*(f"Question: {question}\nAnswer:" for question, _ in row.pairs))
    answered = encoder(*(f" {answer}\n" for _, answer in row.pairs))
    for question, answer in zip(asked, answered, strict=True):
        if len(ids) + len(question) + len(answer) <= tokens:
            ids += question + answer
            kinds += [TEXT] * len(question) + [ANSWER] * len(answer)
    return ids, kinds


def drill_kinds(ids: list[int]) -> list[int]:
    """A token is an answer where the pair that it closes was seen before, else nothing."""
    seen: set[tuple[int, int]] = set()
    kinds = [0]
    for pair in pairwise(ids):
        kinds.append(ANSWER if pair in seen else 0)
        seen.add(pair)
    return kinds


def pack(rows: list[tuple[list[int], list[int]]], tokens: int, pad: int) -> Batch:
    """Cuts and pads on the right; int64 ids, int8 kinds."""
    ids = [(row + [pad] * tokens)[:tokens] for row, _ in rows]
    kinds = [(kind + [0] * tokens)[:tokens] for _, kind in rows]
    return Batch(torch.tensor(ids), torch.tensor(kinds, dtype=torch.int8))
