"""Rows of SFT and DPO: one question each, what it may look up, and what it should say and should not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from remanence.data.facts import PRACTICE, TRAIN
from remanence.data.unknown import UNKNOWN
from remanence.lm.lm import LM
from remanence.methods.base import text_layout
from remanence.train.batches import pack
from remanence.train.conversations import Conversation, Message, spoken
from remanence.train.corpora import Corpora
from remanence.train.losses import ANSWER
from remanence.train.recipes.chat import ChatPhase
from remanence.train.recipes.nano import Phase
from remanence.train.renaming import renamed
from remanence.train.row import Row
from remanence.train.rows import Encoder, _squad, facts_row


@dataclass(frozen=True)
class Asked:
    """`messages` before the answer; `references`: texts that they are read with, by their place in the batch.

    `rejected`: what DPO is to make less likely than `answer`.
    """

    messages: tuple[Message, ...]
    answer: str
    rejected: str
    references: tuple[int, ...] = ()


@dataclass
class Texts:
    """Different references, and questions that name them."""

    references: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def place(self, text: str) -> int:
        if text not in self.references:
            self.references.append(text)
        return self.references.index(text)


@dataclass(frozen=True)
class ChatBatch:
    """`references[i]` are token ids of at most 128; row r reads those that `rows[r]` names. Padding on the right.

    A batch for DPO has the rows of the chosen answers first, then as many of the rejected ones.
    """

    references: list[list[int]]
    rows: list[tuple[int, ...]]
    ids_BT: Tensor
    kind_BT: Tensor


def draw_texts(rng: Random, phase: ChatPhase, corpora: Corpora, encoder: Encoder, split: str = TRAIN) -> Texts:
    """The groups of a step; of the split "heldout" only the generator's, as they are."""
    texts = Texts()
    for _ in range(phase.groups):
        row = _group(rng, phase, corpora, encoder, split)
        chosen = rng.sample(range(len(row.pairs)), min(phase.questions, len(row.pairs)))
        texts.asked += [_asked(rng, phase, row, number, texts) for number in chosen]
    return texts


def _group(rng: Random, phase: ChatPhase, corpora: Corpora, encoder: Encoder, split: str) -> Row:
    shape = Phase(0, 1, 0, phase.passages, 3)
    if split == TRAIN and corpora.contexts and rng.random() < phase.squad:
        return renamed(rng, _squad(rng, shape, corpora), corpora, encoder.pieces)
    row = facts_row(rng, shape, PRACTICE if split == TRAIN else split)
    return renamed(rng, row, corpora, encoder.pieces) if split == TRAIN else row


def _asked(rng: Random, phase: ChatPhase, row: Row, number: int, texts: Texts) -> Asked:
    question, answer = row.pairs[number]
    messages = ({"role": "user", "content": question},)
    own = row.references[row.places[number]]
    pick = rng.random()
    if pick < phase.empty:
        return Asked(messages, UNKNOWN, answer)
    others = [text for text in row.references if text != own and answer not in text]
    if pick < phase.empty + phase.absent:
        silent = without(own, answer)
        seen = [*others, silent] if silent and rng.random() < 1 / 3 else others
        wrong = [other for _, other in row.pairs if other != answer and any(other in text for text in seen)]
        said, rejected = UNKNOWN, rng.choice(wrong) if wrong else answer
    else:
        seen = [text for text in row.references if text == own or answer not in text]
        wrong = [other for _, other in row.pairs if other != answer]
        said, rejected = answer, rng.choice(wrong) if wrong and rng.random() < 0.5 else UNKNOWN
    return Asked(messages, said, rejected, tuple(texts.place(text) for text in rng.sample(seen, len(seen))))


def told_texts(conversations: Sequence[Conversation]) -> Texts:
    """Conversations of a file with the references that were found for them."""
    texts = Texts()
    for one in conversations:
        places = tuple(dict.fromkeys(texts.place(text) for text in one.references))
        texts.asked.append(Asked(one.messages[:-1], one.messages[-1]["content"], one.rejected or "", places))
    return texts


def without(text: str, answer: str) -> str:
    """The text less every sentence that says the answer; empty where all do."""
    return " ".join(sentence for sentence in re.split(r"(?<=[.!?]) ", text) if answer not in sentence)


def pack_chat(
    lm: LM,
    texts: Texts,
    encoder: Encoder,
    limit: int,
    *,
    as_text: bool,
    rejected: bool = False,
    reference_tokens: int = 128,
) -> ChatBatch:
    """`as_text`: references stand in the prompt, none are to be written. `rejected`: for DPO.

    Rows of more than `limit` tokens lose their beginning, references lose what is beyond `reference_tokens`.
    """
    tokens = [ids[:reference_tokens] for ids in encoder(*texts.references)]
    answers = [asked.answer for asked in texts.asked] + [asked.rejected for asked in texts.asked if rejected]
    every = texts.asked * (2 if rejected else 1)
    rows = []
    for asked, answer in zip(every, answers, strict=True):
        shown = [texts.references[i] for i in asked.references] if as_text else []
        ids, kinds = spoken(lm, (*asked.messages, {"role": "assistant", "content": answer}))
        before = text_layout(lm, shown, ())
        rows.append(([*before, *ids][-limit:], ([0] * len(before) + kinds)[-limit:]))
    packed = pack(rows, max(len(ids) for ids, _ in rows), encoder.pad)
    seen = [() if as_text else asked.references for asked in every]
    return ChatBatch([] if as_text else tokens, seen, packed.ids_BT.to(lm.device), packed.kind_BT.to(lm.device))


def answers_of(batch: ChatBatch) -> Tensor:
    """index_N into the flattened B·T positions that predict a token of an answer."""
    chosen = torch.nn.functional.pad(batch.kind_BT[:, 1:].eq(ANSWER), (0, 1))
    return chosen.flatten().nonzero().squeeze(1)
