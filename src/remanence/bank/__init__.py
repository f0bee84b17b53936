"""Where chunks and what models made of them are kept: bytes on disk, no knowledge of any model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remanence.bank.answers import Answer
    from remanence.bank.bank import Bank
    from remanence.bank.meta import TextIndex
    from remanence.bank.new_chunk import NewChunk, chunk_id
    from remanence.bank.reports import BankStats, CompactReceipt, VerifyReport

__all__ = ["Answer", "Bank", "BankStats", "CompactReceipt", "NewChunk", "TextIndex", "VerifyReport", "chunk_id"]

_HOMES = {
    "Answer": "answers",
    "Bank": "bank",
    "BankStats": "reports",
    "CompactReceipt": "reports",
    "NewChunk": "new_chunk",
    "TextIndex": "meta",
    "VerifyReport": "reports",
    "chunk_id": "new_chunk",
}
"""The module of each name, imported when the name is first used: the answers alone need no Arrow."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
