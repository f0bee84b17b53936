"""Compaction: after it, no file of the bank holds a byte of what was removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from remanence.bank.loop import run
from remanence.bank.meta import OURS
from remanence.bank.rows import MEMORIES
from remanence.bank.store import AT_ONCE, CHUNKS_TABLE, Store, Table
from remanence.bank.tensors import HEAD, delete, held_ids, with_payloads
from remanence.bank.texts import Scope

BATCH_ROWS = 256


def compact_tables(store: Store) -> None:
    """Merges files, brings indexes up to date, removes old versions; tables with removed rows are written anew.

    Lance's own optimize keeps a removed row's bytes in its data file (below a tenth of the rows) and
    its words in the full-text index, so neither is used for those. The caller holds the lock.
    """
    for name in list(store.meta.tables):
        if not store.exists(name):
            continue
        if name in store.meta.dirty:
            rewrite(store, name)
        store.optimize(name, keep=AT_ONCE)
        if name in store.meta.dirty:
            store.meta.dirty.remove(name)
            store.save_meta()


def rewrite(store: Store, name: str) -> None:
    """The rows that are left, streamed into new files; all indexes are made anew from them."""
    has_blobs = name in store.meta.of_kind("memories")
    table = store.existing(name)
    schema = MEMORIES if has_blobs else run(table.schema())
    if store.folder is None:
        found = run(table.query().select(HEAD if has_blobs else schema.names).to_arrow()).to_batches(BATCH_ROWS)
        rows = pa.Table.from_batches(_whole(table, found) if has_blobs else found, schema)
        run(table.add(rows, mode="overwrite"))
    else:
        import lancedb

        writer = lancedb.connect(str(store.folder)).open_table(name)  # its rows stream, those of a coroutine do not
        found = writer.search().select(HEAD if has_blobs else schema.names).to_batches(batch_size=BATCH_ROWS)
        rows = _whole(table, found) if has_blobs else found
        writer.add(pa.RecordBatchReader.from_batches(schema, rows), mode="overwrite")
    store.make_indexes(name)


def _whole(table: Table, heads: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of `MEMORIES`: a query gives no payloads."""
    for batch in heads:
        rows = run(with_payloads(table, batch.to_pylist()))
        yield pa.RecordBatch.from_pylist([{name: row[name] for name in MEMORIES.names} for row in rows], MEMORIES)


def is_clean(store: Store) -> bool:
    """Whether no table has an older version left, nor rows that were removed but not written anew."""
    if store.folder is None:
        return not store.meta.dirty
    versions = [store.folder / f"{name}.lance" / "_versions" for name in store.meta.tables if store.exists(name)]
    return not store.meta.dirty and all(len(list(folder.glob("*.manifest"))) == 1 for folder in versions)


def orphans(scope: Scope) -> dict[str, set[str]]:
    """Per table of tensors, the ids of its rows in this namespace that have no chunk."""
    chunks = held_ids(scope, CHUNKS_TABLE)
    meta = scope.store.meta
    names = [*meta.of_kind("memories"), *meta.of_kind("vectors"), *meta.of_kind("usage")]
    found = {name: held_ids(scope, name) - chunks for name in names}
    return {name: ids for name, ids in found.items() if ids}


def delete_everywhere(scope: Scope, condition: str) -> int:
    """Removes rows from all tables of memories and vectors; returns how many memories."""
    meta = scope.store.meta
    for name in meta.of_kind("vectors"):
        delete(scope, name, condition)
    return sum(delete(scope, name, condition) for name in meta.of_kind("memories"))


def disk_bytes(store: Store) -> int:
    """Bytes of all files of the bank; 0 for a bank in RAM."""
    if store.folder is None or store.seal is None:
        return 0
    own = [store.folder / name for name in OURS if (store.folder / name).exists()]
    return sum((store.folder / name).stat().st_size for name in store.seal.files()) + sum(p.stat().st_size for p in own)
