"""Snapshots of a session: taken, rolled back to, saved to a folder, and loaded from one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remanence.bank.new_chunk import NewChunk
from remanence.errors import BankError, BankMismatch, InputError, UnknownChunk
from remanence.files import write_whole
from remanence.types import Chunk

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.methods.base import MethodState

MANIFEST, TEXTS = "moment.json", "texts.jsonl"
"""Names of the files of a saved session; a method's state adds its own."""
FORMAT = 1


@dataclass(frozen=True)
class SessionSnapshot:
    """Ids of the chunks that a session held, and the value of its method's state (None for methods without one).

    `fingerprint`: what `state` is valid for; "" without a state.
    """

    ids: frozenset[str]
    state: object | None = None
    fingerprint: str = ""


def take_snapshot(bank: Bank, state: MethodState | None) -> SessionSnapshot:
    """See `Session.snapshot`."""
    ids = frozenset(chunk.id for chunk in bank.list(include_superseded=True))
    return SessionSnapshot(ids, state.snapshot(), state.fingerprint) if state is not None else SessionSnapshot(ids)


def ids_since(bank: Bank, state: MethodState | None, earlier: SessionSnapshot) -> list[str]:
    """Ids of the chunks that were written after `earlier`.

    Raises InputError for something else than a snapshot, UnknownChunk where a chunk of it is gone, and BankMismatch
    for a snapshot of another model, method or seed.
    """
    if not isinstance(earlier, SessionSnapshot):
        raise InputError(f"a {type(earlier).__name__} is no snapshot", "give what `Session.snapshot` has returned")
    if state is not None and earlier.fingerprint != state.fingerprint:
        raise BankMismatch(
            "the snapshot is of another model, method or seed", "roll back in the session that made it, or one like it"
        )
    ids = [chunk.id for chunk in bank.list(include_superseded=True)]
    if gone := earlier.ids - set(ids):
        raise UnknownChunk(
            f"the snapshot holds chunk {min(gone)!r}, which was forgotten or has expired since", "go on without it"
        )
    return [id for id in ids if id not in earlier.ids]


def save_snapshot(bank: Bank, state: MethodState | None, folder: Path) -> None:
    """Writes the chunks as JSON lines and the state's own files into a new or empty folder. See `Session.save`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        other = sorted(file.name for file in folder.iterdir())
    except OSError as error:
        raise BankError(f"cannot write {str(folder)!r}: {error.strerror}", "give another folder") from error
    if other:
        raise InputError(f"{str(folder)!r} holds {other[0]!r} already", "give a new or empty folder")
    num_texts = bank.export(folder / TEXTS) if bank.list(limit=1, include_superseded=True) else 0
    if state is not None:
        state.write(folder)
    write_whole(folder / MANIFEST, json.dumps({"format": FORMAT, "texts": num_texts}).encode())


def load_snapshot(bank: Bank, state: MethodState | None, folder: Path) -> None:
    """Adds the chunks of a saved session. Its state is checked first, and used where the bank was empty before.

    InputError, BankMismatch, BankCorrupted: nothing is added.
    """
    num_texts = _num_texts(folder)
    value = state.read(folder) if state is not None else None
    was_empty = not bank.list(limit=1, include_superseded=True)
    if num_texts:
        bank.import_(folder / TEXTS)
    if state is not None and value is not None and was_empty:
        state.restore(value)


def _num_texts(folder: Path) -> int:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] == FORMAT and isinstance(manifest["texts"], int):
            return manifest["texts"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{str(folder)!r} is no saved session", "give a folder that `Session.save` has written")


def copies(chunks: Sequence[Chunk], *, linked: bool) -> list[NewChunk]:
    """The same chunks for another bank. `linked`: only those that supersede another chunk, with its id."""
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
