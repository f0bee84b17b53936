"""What reads the text of a retention test and answers questions: an M+ pool, text in the context, explicit memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from remanence.bank import Bank
from remanence.eval.streams import FactQuestion
from remanence.generation import read_or_not
from remanence.lm.capture import capture
from remanence.lm.decode import decode, pad_left
from remanence.lm.lm import LM
from remanence.methods.base import text_layout
from remanence.methods.mplus.longterm import LongTerm
from remanence.methods.mplus.method import MPlus
from remanence.methods.mplus.pool import Pool
from remanence.methods.mplus.prefix import PoolPrefix
from remanence.methods.mplus.rankers import Ranker
from remanence.session import Session
from remanence.text.formats import Document
from remanence.types import KV, LayerPrefix

WITHOUT = "mplus_without_ltm"
QUESTION_TOKENS = 64
"""Positions that are reserved for the question."""
COMMIT_CHUNKS = 128
"""Chunks per commit to the bank."""


class Reader(Protocol):
    """Reads chunks of text and answers questions about them. `name` is the system that answers."""

    def right_after(self, name: str, facts: Sequence[FactQuestion], batch_size: int) -> list[str]:
        """The answer to each question when only its own passage was read."""
        ...

    def write(self, chunks: Sequence[str]) -> None:
        """Reads a text."""
        ...

    def flush(self) -> None:
        """Finishes what `write` has postponed."""
        ...

    def ask(self, name: str, facts: Sequence[FactQuestion], batch_size: int) -> list[str] | None:
        """The answers after all text so far; None if the system cannot read all of it."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class WriteSpan:
    """The pool's clocks before and after a text was written."""

    begin: int
    end: int


class PoolReader:
    """A pool that reads text. `folder`: where the rows of long-term memory are stored (None: in RAM)."""

    def __init__(self, lm: LM, method: MPlus, seed: int, folder: Path | None, max_tokens: int = 16) -> None:
        self.lm, self.method, self.folder, self.max_tokens = lm, method, folder, max_tokens
        self.pool = method.fresh(lm, seed, folder)
        self.written: list[WriteSpan] = []

    def right_after(self, name: str, facts: Sequence[FactQuestion], batch_size: int) -> list[str]:
        """The answer to each question from a fresh pool that has read its passage only."""
        answers: list[str] = []
        for start in range(0, len(facts), batch_size):
            part = facts[start : start + batch_size]
            answers += self._answers(name, part, [self._alone(fact) for fact in part], batch_size)
        return answers

    def _alone(self, fact: FactQuestion) -> Pool:
        pool = self.method.fresh(self.lm, folder=self.folder)
        for chunk in fact.chunks:
            pool = self.method.add(self.lm, pool, self.lm.encode(chunk))
        return pool

    def write(self, chunks: Sequence[str]) -> None:
        begin = self.pool.clock
        for chunk in chunks:
            self.pool = self.method.add(self.lm, self.pool, self.lm.encode(chunk))
        self.written.append(WriteSpan(begin, self.pool.clock))

    def flush(self) -> None:
        """Nothing is postponed."""

    def ask(self, name: str, facts: Sequence[FactQuestion], batch_size: int) -> list[str]:
        return self._answers(name, facts, [self.pool], batch_size)

    def _answers(self, name: str, facts: Sequence[FactQuestion], pools: Sequence[Pool], batch_size: int) -> list[str]:
        """`pools`: one for all questions, or one per question."""
        pools = [_without_long_term(pool) for pool in pools] if name == WITHOUT else pools
        answers: list[str] = []
        for start in range(0, len(facts), batch_size):
            part = slice(start, start + batch_size)
            prompts = [self.prompt(fact.question) for fact in facts[part]]
            answers += self._read_or_not(prompts, pools if len(pools) == 1 else pools[part])
        return answers

    def prompt(self, question: str) -> list[int]:
        """The prompt without BOS, since a pool has its own first vector."""
        return self.lm.render([{"role": "user", "content": question}])[len(self.lm.bos) :]

    def _read_or_not(self, prompts: list[list[int]], pools: Sequence[Pool]) -> list[str]:
        """As in a session, the base model answers what a pool is not about."""
        reads = [True] * len(prompts)
        if self.method.config.least_relevance and len(pools) == 1:
            reads = self.method.knows(self.lm, pools[0], prompts)
        elif self.method.config.least_relevance:
            reads = [self.method.knows(self.lm, pool, [p])[0] for pool, p in zip(pools, prompts, strict=True)]
        answers: dict[int, str] = {}
        for is_read, rows in read_or_not(reads):
            own = pools if len(pools) == 1 else [pools[i] for i in rows]
            texts = self._decode([prompts[i] for i in rows], own if is_read else None)
            answers |= zip(rows, texts, strict=True)
        return [answers[i] for i in range(len(prompts))]

    def _decode(self, prompts: list[list[int]], pools: Sequence[Pool] | None) -> list[str]:
        """`pools` None: the base model, with its BOS."""
        stop, prefix, role = ("\n", *self.lm.stop), None, None
        if pools is None:
            prompts = [[*self.lm.bos, *prompt] for prompt in prompts]
        else:
            prefix, role = self.method.prefix(self.lm, pools, pad_left(prompts, self.lm.device)[1]), "read"
        *_, rows = decode(self.lm, prompts, prefix, max_tokens=self.max_tokens, stop=stop, role=role)
        return [row.text.strip() for row in rows]

    @torch.no_grad()
    def look(self, questions: Sequence[str], choice: Ranker | None = None) -> PoolPrefix:
        """The prefix that these questions read, after a forward pass over them."""
        prompts = [self.prompt(question) for question in questions]
        ids_BT, mask_BT = pad_left(prompts, self.lm.device)
        prefix = self.method.prefix(self.lm, [self.pool], mask_BT, choice)
        positions_BT = prefix.offset_tokens + (mask_BT.cumsum(-1) - 1).clamp(min=0)
        self.lm.forward(ids_BT, prefix, positions_BT, mask_BT, last_only=True, role="read")
        return prefix

    def born(self, number: int) -> Tensor:
        """The clocks (int64) at which the rows of text `number` were written."""
        return torch.arange(self.written[number].begin + 1, self.written[number].end + 1)

    def close(self) -> None:
        self.pool = _without_long_term(self.pool)


def _without_long_term(pool: Pool) -> Pool:
    """The same pool with an empty long-term memory (as MemoryLLM, which reads as many rows, all from its pool)."""
    blocks = replace(pool.long.blocks, blocks=(), counts=())
    return replace(pool, long=LongTerm.empty(replace(pool.long.keeping, eviction="age"), blocks))


class TextReader:
    """Text in front of the question: all of it ("full_context", while it fits) or the newest ("sliding_window")."""

    def __init__(self, lm: LM, max_tokens: int) -> None:
        self.lm, self.max_tokens = lm, max_tokens
        self.room = lm.dims.max_positions - max_tokens - QUESTION_TOKENS - len(text_layout(lm, ["x"], []))
        self.chunks: list[tuple[str, int]] = []

    def right_after(self, name: str, facts: Sequence[FactQuestion], batch_size: int) -> list[str]:
        return [self._answers([fact], [(c, self._size(c)) for c in fact.chunks], 1)[0] for fact in facts]

    def write(self, chunks: Sequence[str]) -> None:
        self.chunks += [(chunk, self._size(chunk)) for chunk in chunks]

    def flush(self) -> None:
        """Nothing is postponed."""

    def ask(self, name: str, facts: Sequence[FactQuestion], batch_size: int) -> list[str] | None:
        if name == "full_context" and sum(size for _, size in self.chunks) > self.room:
            return None
        return self._answers(facts, self.chunks, batch_size)

    def _answers(self, facts: Sequence[FactQuestion], chunks: list[tuple[str, int]], batch_size: int) -> list[str]:
        """The newest text that fits is read once, and all questions attend to its keys and values."""
        newest: list[str] = []
        room = self.room
        for chunk, size in reversed(chunks):
            room -= size
            if room < 0:
                break
            newest.append(chunk)
        prefix = self._prefix(text_layout(self.lm, newest[::-1], [])) if newest else None
        prompts = [self.lm.render([{"role": "user", "content": fact.question}]) for fact in facts]
        answers: list[str] = []
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            *_, rows = decode(self.lm, part, prefix, max_tokens=self.max_tokens, stop=("\n", *self.lm.stop))
            answers += [row.text.strip() for row in rows]
        return answers

    @torch.inference_mode()
    def _prefix(self, ids: Sequence[int]) -> LayerPrefix:
        ids_BT = torch.tensor([ids], device=self.lm.device)
        records = capture(self.lm.model, ids_BT, frozenset(range(self.lm.dims.num_layers)), role=self.lm.reads_as)
        layers = tuple(KV(record.key_BGSD, record.value_BGSD) for _, record in sorted(records.items()))
        return LayerPrefix(layers, len(ids))

    def _size(self, chunk: str) -> int:
        return len(self.lm.encode(f" {chunk}\n"))

    def close(self) -> None:
        self.chunks = []


class ExplicitReader:
    """Memory³ with a bank of all texts. A memory is written when its text is first recalled."""

    def __init__(self, lm: LM, bank: Path, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.session = Session(lm, Bank.open(bank), "memory3")
        self.pending: list[Document] = []

    def right_after(self, name: str, facts: Sequence[FactQuestion], batch_size: int) -> list[str]:
        """The answer to each question from a bank that holds its passage only."""
        answers = []
        for fact in facts:
            with Session(self.session.lm, None, self.session.method) as own:
                for chunk in fact.chunks:
                    own.write(chunk)
                answers.append(self._ask(own, [fact.question])[0])
        return answers

    def write(self, chunks: Sequence[str]) -> None:
        self.pending += [Document(chunk, "", {}) for chunk in chunks]
        if len(self.pending) >= COMMIT_CHUNKS:
            self.flush()

    def flush(self) -> None:
        """Writes the pending texts in one commit: a commit for each would measure the disk."""
        if self.pending:
            self.session.write_documents(self.pending, warm=False)
            self.pending = []

    def ask(self, name: str, facts: Sequence[FactQuestion], batch_size: int) -> list[str]:
        questions = [fact.question for fact in facts]
        return [
            text
            for start in range(0, len(facts), batch_size)
            for text in self._ask(self.session, questions[start : start + batch_size])
        ]

    def _ask(self, session: Session, questions: Sequence[str]) -> list[str]:
        replies = session.generate_batch(list(questions), max_tokens=self.max_tokens, stop=("\n",))
        return [reply.text for reply in replies]

    def close(self) -> None:
        self.session.bank.close()
