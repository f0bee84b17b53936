"""A batch of answers while they are generated, and what each was recalled from."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from remanence.errors import InputError
from remanence.lm.decode import Row, Sampling, decode
from remanence.lm.lm import LM
from remanence.methods.base import Method, Prompt, Reading
from remanence.sources import BankSource
from remanence.types import Recall, Reply, Usage


@dataclass(frozen=True)
class Options:
    """How to answer; `Session.generate` says what each means. One string for `stop` or `without` is one entry."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: Collection[str] = ()
    without: Collection[str] = ()
    recall: bool = True

    def __post_init__(self) -> None:
        for name in ("stop", "without"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if self.max_tokens < 1:
            raise InputError(f"max_tokens {self.max_tokens} leaves no room for an answer", "use 1 or more")
        if "" in self.stop:
            raise InputError("a stop string is empty, which would end every answer at once", "leave it out")


def read_or_not(reads: Sequence[bool]) -> Iterator[tuple[bool, list[int]]]:
    """Rows that read memory, then rows that are left to the base model; neither where there is none."""
    for is_read in (True, False):
        if rows := [row for row, read in enumerate(reads) if read is is_read]:
            yield is_read, rows


class Generation:
    """A batch of answers while they are generated, and what each was recalled from."""

    def __init__(
        self,
        lm: LM,
        method: Method,
        recall: BankSource | None,
        prompts: Sequence[Prompt],
        options: Options,
        begun: float | None = None,
    ) -> None:
        self.lm, self.method, self.recall, self.prompts, self.options = lm, method, recall, prompts, options
        self.begun = time.monotonic() if begun is None else begun
        self.reading = self._read()
        self.rows: list[Row] = []
        self.first_token_seconds = self.seconds = 0.0

    @torch.inference_mode()
    def _read(self) -> Reading:
        if self.recall is None:
            ids = tuple(prompt.ids for prompt in self.prompts)
            return Reading(ids, None, None, tuple(((0, ()),) for _ in ids))
        return self.method.read(self.lm, self.recall, self.prompts)

    @torch.inference_mode()
    def _refresh(self, rows: list[list[int]]) -> Any:
        assert self.recall is not None
        self.reading = self.method.refresh(self.lm, self.recall, self.reading, rows)
        return self.reading.decoding

    def steps(self) -> Iterator[list[Row]]:
        for rows in decode(
            self.lm,
            self.reading.prompts,
            self.reading.prefix,
            decoding_prefix=self.reading.decoding,
            refresh=None if self.recall is None else self._refresh,
            max_tokens=self.options.max_tokens,
            sampling=Sampling(self.options.temperature, self.options.top_p, self.options.seed),
            stop=(*self.options.stop, *self.lm.stop),
            role=None if self.recall is None else self.method.role,
        ):
            self.seconds = time.monotonic() - self.begun
            self.first_token_seconds = self.first_token_seconds or self.seconds
            self.rows = rows
            yield rows

    def replies(self) -> list[Reply]:
        shares: list[dict[str, float]] = [{} for _ in self.rows]
        if self.recall is not None:
            whole = [self._all_ids(i) for i in range(len(self.rows))]
            shares = self.method.shares(self.lm, self.recall, self.reading, whole)
            self.reading = self.method.told(self.recall, self.reading, shares)
            self.recall.bank.note_recalled(
                [hit.chunk.id for row in self.reading.groups for _, hits in row for hit in hits]
            )
        return [self._reply(i, row, shares[i]) for i, row in enumerate(self.rows)]

    def _reply(self, i: int, row: Row, shares: Mapping[str, float]) -> Reply:
        best = {hit.chunk.id: hit for _, hits in self.reading.groups[i] for hit in sorted(hits, key=lambda h: h.score)}
        recalled = [
            Recall(hit.chunk.id, hit.chunk.text, hit.chunk.source, hit.score, shares.get(hit.chunk.id))
            for hit in sorted(best.values(), key=lambda h: -h.score)
        ]
        usage = Usage(len(self.reading.prompts[i]), row.num_tokens, self._memory_tokens(i))
        return Reply(row.text.strip(), recalled, usage, self.seconds, self.first_token_seconds, row.finish or "length")

    def _all_ids(self, i: int) -> list[int]:
        return [*self.rows[i].prompt, *self.rows[i].ids[: self.rows[i].num_tokens]]

    def _memory_tokens(self, i: int) -> int:
        return self.reading.memory_tokens[i] if self.reading.memory_tokens else 0


class Stream:
    """Iterate for pieces of text; `reply` is None until the iteration has ended."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self.reply: Reply | None = None

    def __iter__(self) -> Iterator[str]:
        given = 0
        for rows in self._generation.steps():
            text = rows[0].text.lstrip()
            if len(text) > given:
                yield text[given:]
                given = len(text)
        self.reply = self._generation.replies()[0]
