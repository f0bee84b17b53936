"""Is every byte of a bank what was written, and every memory what its text gives?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from remanence.bank.chunks import live_ids, require_live
from remanence.bank.compaction import orphans
from remanence.bank.lance import bank_errors, run
from remanence.bank.maintenance import BankParts
from remanence.bank.memories import HEAD, check_row, decode_row, memories_table, with_payloads
from remanence.bank.new_chunk import content_hash
from remanence.bank.pool_files import pool_files, pool_problems
from remanence.bank.reports import VerifyReport
from remanence.bank.rows import row_from_dict
from remanence.bank.store import CHUNKS_TABLE, Store
from remanence.errors import BankError, InputError
from remanence.types import Chunk, Memory

Recompute = Callable[[list[Chunk]], Sequence[Memory]]
BATCH_ROWS = 256
MAX_PROBLEMS = 100


def verify(
    parts: BankParts,
    recompute: Recompute | None,
    sample: int,
    fingerprint: str | None,
    tolerance: float,
    decode: bool = True,
) -> VerifyReport:
    """See `Bank.verify`. Files are checked first: where one is damaged, Lance is not asked to read it."""
    context, problems, files = parts.context, [], 0
    store = context.store
    if store.sums:
        problems += store.sums.problems()
        if problems:  # perhaps of a writer at work: again, with all writers kept out
            with store.writing():
                problems = store.sums.problems()
        files = len(store.sums.sums)
    if problems:
        return VerifyReport(0, 0, 0, files, 0, problems[:MAX_PROBLEMS])
    num_chunks = num_memories = num_vectors = num_recomputed = 0
    try:
        num_chunks = _check_rows(parts, CHUNKS_TABLE, _chunk_problem, problems)
        for entry in store.meta.of_kind("memories").values():
            check = partial(_memory_problem, fingerprint=entry["fingerprint"], decode=decode)
            num_memories += _check_rows(parts, memories_table(entry["fingerprint"]), check, problems)
        num_vectors = sum(context.count(name) for name in store.meta.of_kind("vectors"))
        problems += [f"{name}: {len(ids)} rows have no chunk" for name, ids in orphans(context).items()]
        if recompute and not problems:
            chosen = _choose(parts, fingerprint)
            num_recomputed = _recompute(parts, recompute, sample, chosen, tolerance, problems) if chosen else 0
    except BankError as error:
        problems.append(error.message)
    problems += pool_problems(parts.folder, context.namespace)
    num_pools = len(pool_files(parts.folder, context.namespace))
    return VerifyReport(
        num_chunks, num_memories, num_vectors, files, num_recomputed, problems[:MAX_PROBLEMS], num_pools
    )


def _check_rows(
    parts: BankParts, name: str, problem: Callable[[dict[str, Any]], str | None], problems: list[str]
) -> int:
    """Reads every row of this namespace once, a batch at a time; returns how many."""
    num_rows, ids = 0, set()
    for rows in _batches(parts.context.store, name, parts.context.where()):
        for row in rows:
            num_rows += 1
            if row["id"] in ids:
                problems.append(f"{name}: {row['id']!r} is there twice")
            ids.add(row["id"])
            if message := problem(row):
                problems.append(f"{name}: {message}")
    return num_rows


def _batches(store: Store, name: str, where: str) -> Iterator[list[dict[str, Any]]]:
    has_blobs = name in store.meta.of_kind("memories")

    table = store.pinned(name)
    if table is None:
        return
    with bank_errors(store.name):
        query = table.query().where(where)
        stream = run((query.select(HEAD) if has_blobs else query).stream(BATCH_ROWS))
        while (batch := run(anext(stream, None))) is not None:
            rows = batch.to_pylist()
            yield run(with_payloads(table, rows)) if has_blobs else rows


def _chunk_problem(columns: dict[str, Any]) -> str | None:
    try:
        row = row_from_dict(columns)
    except BankError as error:
        return error.message
    hash = content_hash(row.chunk.namespace, row.chunk.text)
    return None if (row.hash, row.chunk.id) == (hash, hash[:16]) else f"{row.chunk.id!r} is not the id of its text"


def _memory_problem(row: dict[str, Any], fingerprint: str, decode: bool) -> str | None:
    try:
        (decode_row if decode else check_row)(row, fingerprint)
    except BankError as error:
        return error.message
    return None


def _choose(parts: BankParts, fingerprint: str | None) -> str | None:
    present = parts.memories.fingerprints()
    if fingerprint is None and len(present) > 1:
        raise InputError(f"the bank holds memories of {len(present)} models", "say which `fingerprint` to recompute")
    return fingerprint or next(iter(present), None)


def _recompute(
    parts: BankParts, recompute: Recompute, sample: int, fingerprint: str, tolerance: float, problems: list[str]
) -> int:
    """Makes `sample` memories, chosen by chance, from their text again; returns how many."""
    from remanence.bank.codecs import largest_difference  # with torch

    live = set(live_ids(parts.context))
    ids = sorted(parts.context.ids_in(memories_table(fingerprint)) & live)
    ids = random.sample(ids, min(sample, len(ids)))
    if not ids:
        return 0
    stored, rows = parts.memories.read(fingerprint, ids), require_live(parts.context, ids)
    for id, memory in zip(ids, recompute([rows[id].chunk for id in ids]), strict=True):
        difference = largest_difference(stored[id], memory)
        if not difference <= tolerance:
            problems.append(f"the memory of {id!r} differs by {difference:.2g} (allowed {tolerance:g}) from its text's")
    return len(ids)
