"""Drafts, small memories, and a clock that the test moves."""

from __future__ import annotations

import torch

from remanence.bank import Bank, NewChunk
from remanence.types import ExplicitMemory

FINGERPRINT = "ab" * 32
NOON = 1_800_000_000.0


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def draft(text: str, **fields: object) -> NewChunk:
    return NewChunk(text, num_tokens=len(text.split()), **fields)


def add_one(bank: Bank, text: str, **fields: object) -> str:
    [(id, _)] = bank.add([draft(text, **fields)])
    return id


def make_memory(seed: int, dtype: torch.dtype = torch.bfloat16, num_empty: int = 0) -> ExplicitMemory:
    """2 layers, 2 heads, 4 slots of which the last `num_empty` are empty, width 8."""
    generator = torch.Generator().manual_seed(seed)
    key, value = (torch.randn(2, 2, 4, 8, generator=generator).to(dtype) for _ in range(2))
    index = torch.arange(4, dtype=torch.int32).repeat(2, 2, 1)
    if num_empty:
        index[..., -num_empty:] = -1
    return ExplicitMemory((0, 1), key, value, index)
