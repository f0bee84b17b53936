"""Moments of a session's memory: kept and gone back to, saved to a folder, forked, and emptied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remanence.errors import InputError, UnknownChunk
from remanence.latent.kept import Kept
from remanence.latent.snapshot import load_kept, save_kept

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.pools import Followed

TEXTS, POOL = "texts.jsonl", "pool.safetensors"


@dataclass(frozen=True)
class Moment:
    """Which texts a session remembered, and the latent pool that had read them (None for methods without one)."""

    ids: frozenset[str]
    kept: Kept | None = None


def moment(bank: Bank, pool: Followed | None) -> Moment:
    kept = pool.now() if pool else None
    return Moment(frozenset(chunk.id for chunk in bank.list(include_superseded=True)), kept)


def since(bank: Bank, earlier: Moment) -> list[str]:
    """What came after `earlier`. UnknownChunk where a text of it was forgotten: nothing brings that back."""
    ids = [chunk.id for chunk in bank.list(include_superseded=True)]
    if gone := earlier.ids - set(ids):
        raise UnknownChunk(
            f"the snapshot holds chunk {min(gone)!r}, which was forgotten since", "write its text again, or go on"
        )
    return [id for id in ids if id not in earlier.ids]


def save_moment(bank: Bank, pool: Followed | None, folder: Path) -> None:
    """The texts as JSON lines and the pool as safetensors, in a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    if other := sorted(file.name for file in folder.iterdir() if file.name not in (TEXTS, POOL)):
        raise InputError(f"{str(folder)!r} holds {other[0]!r}", "give a new or empty folder")
    bank.export(folder / TEXTS)
    if pool:
        save_kept(pool.now(), folder / POOL, pool.method.fingerprint(pool.lm))


def load_moment(bank: Bank, pool: Followed | None, folder: Path) -> None:
    """Adds the texts of a saved moment; its pool is checked first, and used where the bank has read nothing else.

    InputError, BankMismatch, BankCorrupted: nothing is loaded.
    """
    kept = None
    if pool and (folder / POOL).is_file():
        kept = load_kept(folder / POOL, pool.start(), pool.method.fingerprint(pool.lm))
    bank.import_(folder / TEXTS)
    if pool and kept:
        pool.put(kept)
