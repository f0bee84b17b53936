"""Latent pools in a bank's folder: files made of all texts of a namespace, removed as soon as one is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from remanence.errors import BankCorrupted, BankMismatch

FOLDER = "pools"
POOL = "latent pool: "
"""How a problem with a pool begins: a session warns of it and reads the texts again."""


def pool_file(folder: Path | None, namespace: str, fingerprint: str) -> Path | None:
    """Of the bank in `folder`; None for a bank in RAM."""
    return None if folder is None else folder / FOLDER / f"{_short(namespace)}-{fingerprint[:16]}.safetensors"


def pool_files(folder: Path | None, namespace: str) -> list[Path]:
    return [] if folder is None else sorted((folder / FOLDER).glob(f"{_short(namespace)}-*"))


def num_bytes(files: Sequence[Path]) -> int:
    total = 0
    for file in files:
        with suppress(FileNotFoundError):  # a text was forgotten meanwhile
            total += file.stat().st_size
    return total


def pool_problems(folder: Path | None, namespace: str) -> list[str]:
    """One line for each file that is not what was written."""
    problems, files = [], pool_files(folder, namespace)
    if not files:
        return problems
    from remanence.tensor_file import read_tensors  # with torch

    for file in files:
        try:
            read_tensors(file)
        except FileNotFoundError:
            continue  # a text was forgotten meanwhile
        except (BankCorrupted, BankMismatch) as error:
            problems.append(f"{POOL}{error.message}")
    return problems


def remedy(problems: Sequence[str]) -> str:
    """What to do about the problems of a `VerifyReport`."""
    if all(problem.startswith(POOL) for problem in problems):
        return "nothing is lost: a session that reads such a pool makes it again from the bank's texts"
    return "restore the bank from a backup, or import an export into a new bank: memories are made again from text"


def remove_pools(folder: Path | None, namespace: str) -> int:
    """Removes every pool that has read this namespace; returns how many."""
    files = pool_files(folder, namespace)
    for file in files:
        file.unlink(missing_ok=True)
    remove_unfinished(folder)
    return len(files)


def remove_unfinished(folder: Path | None) -> None:
    """Removes what a killed writer left; only under the bank's lock, which every writer of a pool holds."""
    for file in [] if folder is None else (folder / FOLDER).glob(".*.tmp"):
        file.unlink(missing_ok=True)


def _short(namespace: str) -> str:
    return sha256(namespace.encode()).hexdigest()[:16]
