"""Latent pools beside a bank: files made of all texts of a namespace, gone as soon as one of these is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from remanence.errors import BankCorrupted, BankMismatch
from remanence.tensor_file import read_tensors

FOLDER = "pools"
POOL = "latent pool: "
"""What a problem with a pool begins with: a session warns of it and reads the texts again."""


def pool_file(bank: Path | None, namespace: str, fingerprint: str) -> Path | None:
    """None for a bank in RAM."""
    return None if bank is None else bank / FOLDER / f"{_short(namespace)}-{fingerprint[:16]}.safetensors"


def pool_files(bank: Path | None, namespace: str) -> list[Path]:
    return [] if bank is None else sorted((bank / FOLDER).glob(f"{_short(namespace)}-*"))


def num_bytes(files: Sequence[Path]) -> int:
    total = 0
    for file in files:
        with suppress(FileNotFoundError):  # a text was forgotten meanwhile
            total += file.stat().st_size
    return total


def pool_problems(bank: Path | None, namespace: str) -> list[str]:
    """Of files that are not what was written."""
    problems = []
    for file in pool_files(bank, namespace):
        try:
            read_tensors(file)
        except FileNotFoundError:
            continue  # its text was forgotten meanwhile
        except (BankCorrupted, BankMismatch) as error:
            problems.append(f"{POOL}{error.message}")
    return problems


def remedy(problems: Sequence[str]) -> str:
    """What to do about what `Bank.verify` found."""
    if all(problem.startswith(POOL) for problem in problems):
        return "nothing is lost: a session that finds such a pool makes it again from the bank's texts"
    return "restore the bank from a backup, or import an export into a new bank: memories are made again from text"


def remove_pools(bank: Path | None, namespace: str) -> int:
    """Removes every pool that has read this namespace; returns how many."""
    found = pool_files(bank, namespace)
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
