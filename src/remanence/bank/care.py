"""Forgetting, expiry, compaction and numbers: what keeps a bank exact and small."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remanence.bank import compact as compaction
from remanence.bank import listing, texts
from remanence.bank.pooled import num_bytes, pool_files, remove_drafts, remove_pools
from remanence.bank.reports import BankStats, CompactReceipt
from remanence.bank.rows import any_of
from remanence.bank.store import CHUNKS_TABLE, Table
from remanence.bank.tensors import HEAD, delete, memories_table, with_payloads
from remanence.types import ForgetReceipt

if TYPE_CHECKING:
    from remanence.bank.bank import Bank


def forget(bank: Bank, ids: Sequence[str]) -> ForgetReceipt:
    """See `Bank.forget`. Tensors go first: a crash in between leaves a text that is still there to forget."""
    with bank._store.writing():
        unique = list(texts.known(bank._scope, ids))
        num_memories = _remove(bank, unique)
        bank._usage.flush()
    return ForgetReceipt(tuple(unique), num_memories, exact=True, bytes_gone=bank.path is None)


def _remove(bank: Bank, ids: list[str]) -> int:
    num_memories = 0
    for first in range(0, len(ids), texts.LOOKUP_ROWS):
        part = ids[first : first + texts.LOOKUP_ROWS]
        condition = bank._scope.where(any_of("id", part))
        num_memories += compaction.delete_everywhere(bank._scope, condition)
        bank._usage.forget(part, condition)
    bank._memories.cache.discard(ids)
    if ids:
        remove_pools(bank.path, bank.namespace)
        texts.remove(bank._scope, ids)
        bank._scope.resident.clear()
        bank._memories.clear_heads()
        bank._search.clear()
    return num_memories


def keep_pool(bank: Bank, fingerprint: str, ids: Collection[str], write: Callable[[Path], None]) -> bool:
    """See `Bank.keep_pool`. Writers wait meanwhile, so that nobody forgets a text while its rows are written."""
    file = bank.pool_file(fingerprint)
    if file is None:
        return False
    with bank._store.writing():
        remove_drafts(bank.path)
        if set(ids) - bank._scope.live(set(ids)).keys():
            return False
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file)
    return True


def expire(bank: Bank) -> int:
    """See `Bank.expire`."""
    with bank._store.writing():
        ids = listing.live_ids(bank._scope, f"expires <= {bank._scope.clock()!r}")
        _remove(bank, ids)
    return len(ids)


def compact(bank: Bank) -> CompactReceipt:
    """See `Bank.compact`."""
    began, before = time.perf_counter(), compaction.disk_bytes(bank._store)
    with bank._store.writing():
        num_expired = expire(bank)
        orphans = compaction.orphans(bank._scope)
        for name, ids in orphans.items():
            for first in range(0, len(ids), texts.LOOKUP_ROWS):
                part = sorted(ids)[first : first + texts.LOOKUP_ROWS]
                delete(bank._scope, name, bank._scope.where(any_of("id", part)))
        bank._usage.flush()
        compaction.compact_tables(bank._store)
        remove_drafts(bank.path)
        bytes_gone = compaction.is_clean(bank._store)
    return CompactReceipt(
        num_expired=num_expired,
        num_orphans=sum(map(len, orphans.values())),
        bytes_before=before,
        bytes_after=compaction.disk_bytes(bank._store),
        bytes_gone=bytes_gone,
        seconds=time.perf_counter() - began,
    )


def stats(bank: Bank) -> BankStats:
    """See `Bank.stats`."""
    scope, store, memories = bank._scope, bank._store, bank._memories
    num_visible = listing.count(scope)
    num_live = listing.count(scope, listing.live_condition(scope))
    num_all = store.read(CHUNKS_TABLE, lambda table: table.count_rows(scope.where()), 0)
    descriptions = memories.fingerprints()
    pools = pool_files(bank.path, bank.namespace)
    counts = {fingerprint: memories.count(fingerprint) for fingerprint in descriptions}
    return BankStats(
        namespace=bank.namespace,
        format=store.meta.format,
        num_chunks=num_visible,
        num_superseded=num_live - num_visible,
        num_expired=num_all - num_live,
        num_tokens=_num_tokens(bank),
        num_recalls=sum(count for count, _ in bank._usage.counts().values()),
        memories=counts,
        descriptions=descriptions,
        vectors=_vectors(bank),
        bytes_per_memory=_bytes_per_memory(bank, counts),
        disk_bytes=compaction.disk_bytes(store),
        ram_bytes=memories.cache.num_bytes,
        ram_row_bytes=memories.row_bytes() + bank._search.row_bytes(),
        ram_limit_bytes=memories.cache.limit_bytes,
        ram_memories=len(memories.cache),
        ram_hits=memories.cache.hits,
        ram_misses=memories.cache.misses,
        text_index=asdict(store.meta.text_index),
        num_pools=len(pools),
        pool_bytes=num_bytes(pools),
    )


def _num_tokens(bank: Bank) -> int:
    where = bank._scope.where(listing.visible_condition(bank._scope))
    column = ["num_tokens"]
    table = bank._store.read(CHUNKS_TABLE, lambda t: t.query().where(where).select(column).to_arrow(), None)
    return sum(table["num_tokens"].to_pylist()) if table is not None else 0


def _vectors(bank: Bank) -> dict[str, int]:
    entries, where = bank._store.meta.of_kind("vectors"), bank._scope.where()
    counts = {e["embedder"]: bank._store.read(name, lambda t: t.count_rows(where), 0) for name, e in entries.items()}
    return {embedder: count for embedder, count in counts.items() if count}


def _bytes_per_memory(bank: Bank, counts: dict[str, int]) -> float:
    """Mean over the first hundred payloads of the fingerprint with most memories; 0 where there is none."""
    if not counts:
        return 0.0
    name, where = memories_table(max(counts, key=counts.__getitem__)), bank._scope.where()

    async def read(table: Table) -> list[dict[str, Any]]:
        heads = await table.query().where(where).select(HEAD).limit(100).to_arrow()
        return await with_payloads(table, heads.to_pylist())

    sizes = [len(row["payload"]) for row in bank._store.read(name, read, [])]
    return sum(sizes) / len(sizes) if sizes else 0.0
