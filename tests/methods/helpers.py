"""A recaller without a bank, and running a reading's prompts as one left-padded batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from remanence.lm.lm import LM
from remanence.methods.base import Method, Reading
from remanence.types import Chunk, ExplicitMemory, Hit


def hit(text: str, score: float = 0.5) -> Hit:
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Hit(Chunk(name, "test", text, len(text), "test.txt", 0, len(text), created=0.0), score)


@dataclass
class Recalls:
    """Answers every search with what `answer` says, writes what is asked for, and keeps the queries."""

    lm: LM
    method: Method
    answer: Callable[[str], Sequence[str]]
    library: Sequence[str] = ()
    queries: list[str] = field(default_factory=list)
    written: dict[str, ExplicitMemory] = field(default_factory=dict)

    def hits(self, query: str, limit: int) -> list[Hit]:
        self.queries.append(query)
        return [hit(text) for text in self.answer(query)][:limit]

    def memories(self, hits: Sequence[Hit]) -> list[ExplicitMemory]:
        for found in hits:
            if found.chunk.id not in self.written:
                ids = self.lm.encode(found.chunk.text)
                self.written[found.chunk.id] = self.method.write(self.lm, [ids])[0]
        return [self.written[found.chunk.id] for found in hits]

    def texts(self, limit_tokens: int) -> list[Hit]:
        return [hit(text) for text in self.library]


@torch.no_grad()
def run(lm: LM, reading: Reading) -> list[Tensor]:
    """Logits (T_r, V) of every row of a reading's prompts."""
    longest = max(map(len, reading.prompts))
    ids_BT = torch.tensor([[0] * (longest - len(row)) + list(row) for row in reading.prompts])
    mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in reading.prompts])
    offset = 0 if reading.prefix is None else reading.prefix.offset_tokens
    positions_BT = offset + (mask_BT.cumsum(-1) - 1).clamp(min=0)
    logits_BTV = lm.forward(ids_BT, reading.prefix, positions_BT, None if mask_BT.all() else mask_BT)
    return [row[longest - len(ids) :] for row, ids in zip(logits_BTV, reading.prompts, strict=True)]
