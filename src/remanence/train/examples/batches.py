"""Encodes training examples and packs them into tensors. Batch number N of a seed is always the same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import torch
from torch import Tensor

from remanence.data.facts import TRAIN
from remanence.train.core.losses import ANSWER, TEXT
from remanence.train.core.parallel import own
from remanence.train.examples.corpora import Corpora
from remanence.train.examples.mixture import Encoder, Example, book_example, draw_example, facts_example
from remanence.train.recipes.nano import NanoPhase

TEXT_TOKENS, TEXT_REFERENCES = 208, 5
"""Tokens, and references, of an example of running text in an evaluation."""


@dataclass(frozen=True)
class Batch:
    """`ids_BT` (int64), padded on the right. `kind_BT` (int8): each token as a target: 0 (none), TEXT or ANSWER."""

    ids_BT: Tensor
    kind_BT: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids_BT.to(device), self.kind_BT.to(device))


def context_batch(
    seed: int, step: int, phase: NanoPhase, corpora: Corpora, encoder: Encoder, split: str = TRAIN
) -> Batch:
    """Examples with their references as text: `<s>Reference: {p}\\n …<s>Question: {q}\\nAnswer: {a}\\n…`."""
    rng = Random(f"{seed} {step} {split}")  # every process draws all examples and takes its part
    examples = own([draw_example(rng, phase, corpora, encoder, split) for _ in range(phase.rows)])
    return pack([encode_example(each, encoder, phase.tokens) for each in examples], phase.tokens, encoder.pad)


def heldout_batch(seed: int, rows: int, tokens: int, passages: int, facts: int, encoder: Encoder) -> Batch:
    """Generated examples with words and wordings that training never sees."""
    phase = NanoPhase(0, rows, tokens, (passages, passages), facts)
    rng = Random(f"heldout {seed} {passages}")
    examples = [facts_example(rng, phase, "heldout") for _ in range(rows)]
    return pack([encode_example(each, encoder, tokens) for each in examples], tokens, encoder.pad)


def text_examples(seed: int, count: int, corpora: Corpora) -> list[Example]:
    """Examples from held-out books, with paragraphs before them as references."""
    rng = Random(f"text {seed}")
    return [book_example(rng, corpora.heldout_paragraphs, TEXT_REFERENCES) for _ in range(count)]


def text_batch(examples: list[Example], encoder: Encoder) -> Batch:
    """Examples of running text without their references."""
    return pack([encode_example(each, encoder, TEXT_TOKENS) for each in examples], TEXT_TOKENS, encoder.pad)


def encode_example(example: Example, encoder: Encoder, tokens: int) -> tuple[list[int], list[int]]:
    """(ids, kinds) of at most `tokens` tokens, with the references as text. Questions that do not fit are left out."""
    if example.ids:
        return example.ids, drill_kinds(example.ids)
    if example.text:
        ids = [encoder.bos, *encoder(example.text)[0]][:tokens]
        return ids, [TEXT] * len(ids)
    references = [id for ids in encoder(*(f" {text}\n" for text in example.references)) for id in ids]
    ids = [*encoder.header, *references]
    kinds = [TEXT] * len(ids)
    return with_questions(example, encoder, tokens, ids, kinds)


def with_questions(
    example: Example, encoder: Encoder, tokens: int, ids: list[int], kinds: list[int]
) -> tuple[list[int], list[int]]:
    """(ids, kinds) with `<s>` and as many question-answer pairs appended as fit into `tokens`."""
    ids, kinds = [*ids, encoder.bos], [*kinds, 0]
    questions = encoder(*(f"Question: {question}\nAnswer:" for question, _ in example.pairs))
    answers = encoder(*(f" {answer}\n" for _, answer in example.pairs))
    for question, answer in zip(questions, answers, strict=True):
        if len(ids) + len(question) + len(answer) <= tokens:
            ids += question + answer
            kinds += [TEXT] * len(question) + [ANSWER] * len(answer)
    return ids, kinds


def drill_kinds(ids: list[int]) -> list[int]:
    """ANSWER for a token that ends a pair of tokens seen before, else 0."""
    seen: set[tuple[int, int]] = set()
    kinds = [0]
    for pair in pairwise(ids):
        kinds.append(ANSWER if pair in seen else 0)
        seen.add(pair)
    return kinds


def pack(rows: list[tuple[list[int], list[int]]], tokens: int, pad: int) -> Batch:
    """A batch of rows (ids, kinds), each cut or padded on the right to `tokens`."""
    ids = [(row + [pad] * tokens)[:tokens] for row, _ in rows]
    kinds = [(kind + [0] * tokens)[:tokens] for _, kind in rows]
    return Batch(torch.tensor(ids), torch.tensor(kinds, dtype=torch.int8))
