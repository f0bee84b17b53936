"""Latent pools beside a bank: files made of all texts of a namespace, gone as soon as one of these is forgotten."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

FOLDER = "pools"


def pool_file(bank: Path | None, namespace: str, fingerprint: str) -> Path | None:
    """None for a bank in RAM."""
    return None if bank is None else bank / FOLDER / f"{_short(namespace)}-{fingerprint[:16]}.safetensors"


def remove_pools(bank: Path | None, namespace: str) -> int:
    """Removes every pool that has read this namespace; returns how many."""
    found = [] if bank is None else list((bank / FOLDER).glob(f"{_short(namespace)}-*"))
    for file in found:
        file.unlink(missing_ok=True)
    remove_drafts(bank)
    return len(found)


def remove_drafts(bank: Path | None) -> None:
    """What a killed writer left; only under the bank's lock, which every writer of a pool holds."""
    for draft in [] if bank is None else (bank / FOLDER).glob(".*.tmp"):
        draft.unlink(missing_ok=True)


def _short(namespace: str) -> str:
    return sha256(namespace.encode()).hexdigest()[:16]
