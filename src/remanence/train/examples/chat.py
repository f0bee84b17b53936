"""Examples of SFT, DPO and retrofit: a question, its references, the answer, and for DPO a worse answer."""

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
from remanence.train.core.losses import ANSWER
from remanence.train.examples.batches import pack
from remanence.train.examples.conversations import Conversation, Message, encode_conversation
from remanence.train.examples.corpora import Corpora
from remanence.train.examples.mixture import Encoder, Example, facts_example, renamed, squad_example
from remanence.train.recipes.chat import ChatPhase
from remanence.train.recipes.nano import NanoPhase


@dataclass(frozen=True)
class ChatQuestion:
    """`messages` before the answer, and `references`: indices into the texts of `ChatExamples`.

    `rejected`: the answer that DPO makes less likely than `answer`.
    """

    messages: tuple[Message, ...]
    answer: str
    rejected: str
    references: tuple[int, ...] = ()


@dataclass
class ChatExamples:
    """Distinct reference texts, and the questions that use them."""

    references: list[str] = field(default_factory=list)
    questions: list[ChatQuestion] = field(default_factory=list)

    def place(self, text: str) -> int:
        """The index of a reference, which is added if it is new."""
        if text not in self.references:
            self.references.append(text)
        return self.references.index(text)


@dataclass(frozen=True)
class ChatBatch:
    """`references[i]`: token ids. Row r reads the references `rows[r]`. `ids_BT` and `kind_BT`: as in `Batch`.

    A batch for DPO holds the rows of the chosen answers first, then as many of the rejected ones.
    """

    references: list[list[int]]
    rows: list[tuple[int, ...]]
    ids_BT: Tensor
    kind_BT: Tensor


def draw_chat_examples(
    rng: Random, phase: ChatPhase, corpora: Corpora, encoder: Encoder, split: str = TRAIN
) -> ChatExamples:
    """The questions of a step. The split "heldout" has only generated passages, not renamed."""
    examples = ChatExamples()
    for _ in range(phase.groups):
        example = _group(rng, phase, corpora, encoder, split)
        chosen = rng.sample(range(len(example.pairs)), min(phase.questions, len(example.pairs)))
        examples.questions += [_question(rng, phase, example, number, examples) for number in chosen]
    return examples


def _group(rng: Random, phase: ChatPhase, corpora: Corpora, encoder: Encoder, split: str) -> Example:
    shape = NanoPhase(0, 1, 0, phase.passages, 3)
    if split == TRAIN and corpora.contexts and rng.random() < phase.squad:
        return renamed(rng, squad_example(rng, shape, corpora), corpora, encoder.pieces)
    example = facts_example(rng, shape, PRACTICE if split == TRAIN else split)
    return renamed(rng, example, corpora, encoder.pieces) if split == TRAIN else example


def _question(rng: Random, phase: ChatPhase, example: Example, number: int, examples: ChatExamples) -> ChatQuestion:
    question, answer = example.pairs[number]
    messages = ({"role": "user", "content": question},)
    own = example.references[example.places[number]]
    pick = rng.random()
    if pick < phase.empty:
        return ChatQuestion(messages, UNKNOWN, answer)
    others = [text for text in example.references if text != own and answer not in text]
    if pick < phase.empty + phase.absent:
        silent = without(own, answer)
        seen = [*others, silent] if silent and rng.random() < 1 / 3 else others
        wrong = [other for _, other in example.pairs if other != answer and any(other in text for text in seen)]
        chosen, rejected = UNKNOWN, rng.choice(wrong) if wrong else answer
    else:
        seen = [text for text in example.references if text == own or answer not in text]
        wrong = [other for _, other in example.pairs if other != answer]
        chosen, rejected = answer, rng.choice(wrong) if wrong and rng.random() < 0.5 else UNKNOWN
    places = tuple(examples.place(text) for text in rng.sample(seen, len(seen)))
    return ChatQuestion(messages, chosen, rejected, places)


def conversation_examples(conversations: Sequence[Conversation]) -> ChatExamples:
    """Conversations of a file with their references."""
    examples = ChatExamples()
    for one in conversations:
        places = tuple(dict.fromkeys(examples.place(text) for text in one.references))
        question = ChatQuestion(one.messages[:-1], one.messages[-1]["content"], one.rejected or "", places)
        examples.questions.append(question)
    return examples


def without(text: str, answer: str) -> str:
    """The text without the sentences that contain the answer."""
    return " ".join(sentence for sentence in re.split(r"(?<=[.!?]) ", text) if answer not in sentence)


def pack_chat(
    lm: LM,
    examples: ChatExamples,
    encoder: Encoder,
    limit: int,
    *,
    as_text: bool,
    rejected: bool = False,
    reference_tokens: int = 128,
) -> ChatBatch:
    """One row per question. `as_text`: the references stand in the prompt, none is written. `rejected`: for DPO.

    A row of more than `limit` tokens loses its beginning, a reference its tokens after `reference_tokens`.
    """
    tokens = [ids[:reference_tokens] for ids in encoder(*examples.references)]
    answers = [each.answer for each in examples.questions] + [each.rejected for each in examples.questions if rejected]
    questions = examples.questions * (2 if rejected else 1)
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        shown = [examples.references[i] for i in question.references] if as_text else []
        ids, kinds = encode_conversation(lm, (*question.messages, {"role": "assistant", "content": answer}))
        before = text_layout(lm, shown, ())
        rows.append(([*before, *ids][-limit:], ([0] * len(before) + kinds)[-limit:]))
    packed = pack(rows, max(len(ids) for ids, _ in rows), encoder.pad)
    read = [() if as_text else question.references for question in questions]
    return ChatBatch([] if as_text else tokens, read, packed.ids_BT.to(lm.device), packed.kind_BT.to(lm.device))


def answer_positions(batch: ChatBatch) -> Tensor:
    """index_N (int64) into the flattened B·T positions that predict a token of an answer."""
    chosen = torch.nn.functional.pad(batch.kind_BT[:, 1:].eq(ANSWER), (0, 1))
    return chosen.flatten().nonzero().squeeze(1)
