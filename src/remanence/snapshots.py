"""Moments of a session's memory: kept and gone back to, saved to a folder and loaded from one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remanence.bank.new_chunk import NewChunk
from remanence.errors import BankError, BankMismatch, InputError, UnknownChunk
from remanence.files import write_whole
from remanence.methods.mplus.history import PoolHistory
from remanence.methods.mplus.pool_file import load_history, save_history
from remanence.types import Chunk

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.methods.mplus.bank_pool import BankPool

MOMENT, TEXTS, POOL = "moment.json", "texts.jsonl", "pool.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class SessionSnapshot:
    """Which texts a session remembered, and the latent pool that had read them (None for methods without one)."""

    ids: frozenset[str]
    kept: PoolHistory | None = None
    fingerprint: str = ""


def moment(bank: Bank, pool: BankPool | None) -> SessionSnapshot:
    ids = frozenset(chunk.id for chunk in bank.list(include_superseded=True))
    return SessionSnapshot(ids, pool.now(), pool.fingerprint) if pool else SessionSnapshot(ids)


def since(bank: Bank, pool: BankPool | None, earlier: SessionSnapshot) -> list[str]:
    """What came after `earlier`. UnknownChunk where a text of it is gone; BankMismatch for one of another model."""
    if not isinstance(earlier, SessionSnapshot):
        raise InputError(f"a {type(earlier).__name__} is no snapshot", "give what `Session.snapshot` has returned")
    if pool and earlier.fingerprint != pool.fingerprint:
        raise BankMismatch(
            "the snapshot is of another model, method or seed", "roll back in the session that made it, or one like it"
        )
    ids = [chunk.id for chunk in bank.list(include_superseded=True)]
    if gone := earlier.ids - set(ids):
        raise UnknownChunk(
            f"the snapshot holds chunk {min(gone)!r}, which was forgotten or has expired since", "go on without it"
        )
    return [id for id in ids if id not in earlier.ids]


def save_snapshot(bank: Bank, pool: BankPool | None, folder: Path) -> None:
    """The texts as JSON lines and the pool as safetensors, in a new or empty folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        other = sorted(file.name for file in folder.iterdir())
    except OSError as error:
        raise BankError(f"cannot write {str(folder)!r}: {error.strerror}", "give another folder") from error
    if other:
        raise InputError(f"{str(folder)!r} holds {other[0]!r} already", "give a new or empty folder")
    num_texts = bank.export(folder / TEXTS) if bank.list(limit=1, include_superseded=True) else 0
    if pool:
        save_history(pool.now(), folder / POOL, pool.fingerprint)
    write_whole(folder / MOMENT, json.dumps({"format": FORMAT, "texts": num_texts}).encode())


def load_snapshot(bank: Bank, pool: BankPool | None, folder: Path) -> None:
    """Adds the texts of a saved moment. Its pool is checked first, and used where the bank held nothing before.

    InputError, BankMismatch, BankCorrupted: nothing is loaded.
    """
    told = _told(folder)
    kept = None
    if pool and (folder / POOL).is_file():
        kept = load_history(folder / POOL, pool.start(), pool.fingerprint)
    is_empty = not bank.list(limit=1, include_superseded=True)
    if told["texts"]:
        bank.import_(folder / TEXTS)
    if pool and kept and is_empty:
        pool.put(kept)


def _told(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / MOMENT).read_text(encoding="utf-8"))
        if told["format"] == FORMAT and isinstance(told["texts"], int):
            return told
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{str(folder)!r} is no saved moment", "give a folder that `Session.save` has written")


def copies(chunks: Sequence[Chunk], *, linked: bool) -> list[NewChunk]:
    """The same texts as new chunks for another bank; `linked`: only those that supersede one, saying which."""
    return [
        NewChunk(
            text=chunk.text,
            num_tokens=chunk.num_tokens,
            source=chunk.source,
            start=chunk.start,
            end=chunk.end,
            expires=chunk.expires,
            supersedes=chunk.supersedes if linked else None,
            metadata=dict(chunk.metadata),
        )
        for chunk in chunks
        if chunk.supersedes or not linked
    ]
