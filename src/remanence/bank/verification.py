"""Is every byte of a bank what was written, and every memory what its text gives?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from remanence.bank.codec import largest_difference
from remanence.bank.compact import orphans
from remanence.bank.draft import content_hash
from remanence.bank.guard import guard
from remanence.bank.listing import live_ids
from remanence.bank.loop import run
from remanence.bank.pooled import pool_files, pool_problems
from remanence.bank.reports import VerifyReport
from remanence.bank.rows import row_from_dict
from remanence.bank.store import CHUNKS_TABLE, Store
from remanence.bank.tensors import HEAD, decode_row, held_ids, memories_table, with_payloads
from remanence.errors import BankError, InputError
from remanence.types import Chunk, Memory

if TYPE_CHECKING:
    from remanence.bank.bank import Bank

Recompute = Callable[[list[Chunk]], Sequence[Memory]]
BATCH_ROWS = 256
MAX_PROBLEMS = 100


def verify(
    bank: Bank, recompute: Recompute | None, sample: int, fingerprint: str | None, tolerance: float
) -> VerifyReport:
    """See `Bank.verify`. Files are checked first: where one is damaged, Lance is not asked to read it."""
    store, problems, files = bank._store, [], 0
    if store.seal:
        problems += store.seal.problems()
        if problems:  # perhaps of a writer at work: again, with all writers kept out
            with store.writing():
                problems = store.seal.problems()
        files = len(store.seal.sums)
    if problems:
        return VerifyReport(0, 0, 0, files, 0, problems[:MAX_PROBLEMS])
    num_chunks = num_memories = num_vectors = num_recomputed = 0
    try:
        num_chunks = _check_rows(bank, CHUNKS_TABLE, _chunk_problem, problems)
        for entry in store.meta.of_kind("memories").values():
            check = partial(_memory_problem, fingerprint=entry["fingerprint"])
            num_memories += _check_rows(bank, memories_table(entry["fingerprint"]), check, problems)
        num_vectors = sum(_count(bank, name) for name in store.meta.of_kind("vectors"))
        problems += [f"{name}: {len(ids)} rows have no chunk" for name, ids in orphans(bank._scope).items()]
        if recompute and not problems:
            chosen = _choose(bank, fingerprint)
            num_recomputed = _recompute(bank, recompute, sample, chosen, tolerance, problems) if chosen else 0
    except BankError as error:
        problems.append(error.message)
    problems += pool_problems(bank.path, bank.namespace)
    num_pools = len(pool_files(bank.path, bank.namespace))
    return VerifyReport(
        num_chunks, num_memories, num_vectors, files, num_recomputed, problems[:MAX_PROBLEMS], num_pools
    )


def _count(bank: Bank, name: str) -> int:
    return bank._store.read(name, lambda table: table.count_rows(bank._scope.where()), 0)


def _check_rows(bank: Bank, name: str, problem: Callable[[dict[str, Any]], str | None], problems: list[str]) -> int:
    """Reads every row of this namespace once, a batch at a time; returns how many."""
    num_rows, ids = 0, set()
    for rows in _batches(bank._store, name, bank._scope.where()):
        for row in rows:
            num_rows += 1
            if row["id"] in ids:
                problems.append(f"{name}: {row['id']!r} is there twice")
            ids.add(row["id"])
            if found := problem(row):
                problems.append(f"{name}: {found}")
    return num_rows


def _batches(store: Store, name: str, where: str) -> Iterator[list[dict[str, Any]]]:
    has_blobs = name in store.meta.of_kind("memories")

    table = store.pinned(name)
    if table is None:
        return
    with guard(store.name):
        query = table.query().where(where)
        reader = run((query.select(HEAD) if has_blobs else query).to_batches(max_batch_length=BATCH_ROWS))
        while (batch := run(anext(reader, None))) is not None:
            rows = batch.to_pylist()
            yield run(with_payloads(table, rows)) if has_blobs else rows


def _chunk_problem(columns: dict[str, Any]) -> str | None:
    try:
        row = row_from_dict(columns)
    except BankError as error:
        return error.message
    hash = content_hash(row.chunk.namespace, row.chunk.text)
    return None if (row.hash, row.chunk.id) == (hash, hash[:16]) else f"{row.chunk.id!r} is not the id of its text"


def _memory_problem(row: dict[str, Any], fingerprint: str) -> str | None:
    try:
        decode_row(row, fingerprint)
    except BankError as error:
        return error.message
    return None


def _choose(bank: Bank, fingerprint: str | None) -> str | None:
    held = bank.fingerprints()
    if fingerprint is None and len(held) > 1:
        raise InputError(f"the bank holds memories of {len(held)} models", "say which `fingerprint` to recompute")
    return fingerprint or next(iter(held), None)


def _recompute(
    bank: Bank, recompute: Recompute, sample: int, fingerprint: str, tolerance: float, problems: list[str]
) -> int:
    """Makes `sample` memories, chosen by chance, from their text again; returns how many."""
    live = set(live_ids(bank._scope))
    ids = sorted(held_ids(bank._scope, memories_table(fingerprint)) & live)
    ids = random.sample(ids, min(sample, len(ids)))
    if not ids:
        return 0
    stored = bank._memories.read(fingerprint, ids)
    for id, made in zip(ids, recompute(bank.get(ids)), strict=True):
        difference = largest_difference(stored[id], made)
        if not difference <= tolerance:
            problems.append(f"the memory of {id!r} differs by {difference:.2g} (allowed {tolerance:g}) from its text's")
    return len(ids)
