"""A latent pool that reads a stream of text and is asked in between, with long-term memory and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from remanence.eval.streams import Fact
from remanence.generation import read_or_not
from remanence.lm.decode import decode, pad_left
from remanence.lm.lm import LM
from remanence.methods.mplus.longterm import LongTerm
from remanence.methods.mplus.method import MPlus
from remanence.methods.mplus.pool import Pool
from remanence.methods.mplus.prefix import PoolPrefix
from remanence.methods.mplus.rankers import Ranker

WITHOUT = "mplus_without_ltm"


@dataclass(frozen=True)
class Written:
    """The clocks between which a fact's rows were born."""

    begin: int
    end: int


class PoolReader:
    """`folder`: where rows of long-term memory are kept, so that RAM does not grow with them (None: in RAM)."""

    def __init__(self, lm: LM, method: MPlus, seed: int, folder: Path | None, max_tokens: int = 16) -> None:
        self.lm, self.method, self.folder, self.max_tokens = lm, method, folder, max_tokens
        self.pool = method.fresh(lm, seed, folder)
        self.written: list[Written] = []

    def right_after(self, name: str, kept: Sequence[Fact], batch_size: int) -> list[str]:
        """Each question asked of a fresh pool that has read its passage alone; nothing of that stays."""
        answers: list[str] = []
        for start in range(0, len(kept), batch_size):
            part = kept[start : start + batch_size]
            answers += self._answers(name, part, [self._alone(item) for item in part], batch_size)
        return answers

    def _alone(self, item: Fact) -> Pool:
        pool = self.method.fresh(self.lm, folder=self.folder)
        for chunk in item.chunks:
            pool = self.method.add(self.lm, pool, self.lm.encode(chunk))
        return pool

    def write(self, chunks: Sequence[str]) -> None:
        begin = self.pool.clock
        for chunk in chunks:
            self.pool = self.method.add(self.lm, self.pool, self.lm.encode(chunk))
        self.written.append(Written(begin, self.pool.clock))

    def flush(self) -> None:
        """Nothing waits."""

    def ask(self, name: str, kept: Sequence[Fact], batch_size: int) -> list[str]:
        return self._answers(name, kept, [self.pool], batch_size)

    def _answers(self, name: str, kept: Sequence[Fact], pools: Sequence[Pool], batch_size: int) -> list[str]:
        """`pools`: one for all questions, or one for each."""
        pools = [_without(pool) for pool in pools] if name == WITHOUT else pools
        answers: list[str] = []
        for start in range(0, len(kept), batch_size):
            part = slice(start, start + batch_size)
            prompts = [self.prompt(item.question) for item in kept[part]]
            answers += self._read_or_not(prompts, pools if len(pools) == 1 else pools[part])
        return answers

    def prompt(self, question: str) -> list[int]:
        """Without BOS: a pool has its own first vector."""
        return self.lm.render([{"role": "user", "content": question}])[len(self.lm.bos) :]

    def _read_or_not(self, prompts: list[list[int]], pools: Sequence[Pool]) -> list[str]:
        """As a session does: what a pool is not about is asked of the base model."""
        reads = [True] * len(prompts)
        if self.method.config.least_relevance and len(pools) == 1:
            reads = self.method.knows(self.lm, pools[0], prompts)
        elif self.method.config.least_relevance:
            reads = [self.method.knows(self.lm, pool, [p])[0] for pool, p in zip(pools, prompts, strict=True)]
        answers: dict[int, str] = {}
        for is_read, rows in read_or_not(reads):
            own = pools if len(pools) == 1 else [pools[i] for i in rows]
            found = self._decoded([prompts[i] for i in rows], own if is_read else None)
            answers |= zip(rows, found, strict=True)
        return [answers[i] for i in range(len(prompts))]

    def _decoded(self, prompts: list[list[int]], pools: Sequence[Pool] | None) -> list[str]:
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
        """What would be read for these questions, without an answer."""
        prompts = [self.prompt(question) for question in questions]
        ids_BT, mask_BT = pad_left(prompts, self.lm.device)
        prefix = self.method.prefix(self.lm, [self.pool], mask_BT, choice)
        positions_BT = prefix.offset_tokens + (mask_BT.cumsum(-1) - 1).clamp(min=0)
        self.lm.forward(ids_BT, prefix, positions_BT, mask_BT, last_only=True, role="read")
        return prefix

    def born(self, number: int) -> Tensor:
        """The clocks of the rows of the `number`-th text that was written."""
        return torch.arange(self.written[number].begin + 1, self.written[number].end + 1)

    def close(self) -> None:
        self.pool = _without(self.pool)


def _without(pool: Pool) -> Pool:
    """The same pool, with nothing in long-term memory (MemoryLLM reads as many rows, all of them of its pool)."""
    blocks = replace(pool.long.blocks, blocks=(), counts=())
    return replace(pool, long=LongTerm.empty(replace(pool.long.keeping, eviction="age"), blocks))
