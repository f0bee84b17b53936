"""Compaction: files are written anew until none holds a byte of what was removed, and then it is proven."""

from __future__ import annotations

import json
import mmap
import random
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from remanence.bank import checksums, meta
from remanence.bank.context import BankContext
from remanence.bank.lance import Table, run
from remanence.bank.memories import HEAD, with_payloads
from remanence.bank.rows import MEMORIES, READ, Row, any_of, rows_from_table
from remanence.bank.store import AT_ONCE, CHUNKS_TABLE, Store

BATCH_ROWS = 256
MAX_VERSIONS = 64
"""So many older versions are searched for what was removed."""
MIN_TRACE_CHARS = 4
"""A source or a metadata value that is shorter says nothing about one chunk."""
MAX_TRACES = 64
"""So many strings are searched for in the bytes of the files; of more, a random sample."""
MIN_SEARCH_BYTES = 8
"""A shorter string occurs in any large file by chance."""
WITHOUT_TEXT = (meta.FILE, checksums.FILE)
"""Files with names of models and tables, settings and sums, in which a source's name may occur by chance."""


@dataclass
class Traces:
    """What would show that a removed chunk is still there: its id, and the strings that no other chunk has."""

    ids: set[str] = field(default_factory=set)
    strings: set[str] = field(default_factory=set)


# --- rewriting --------------------------------------------------------------------------------


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
    schema = MEMORIES if has_blobs else run(store.existing(name).schema())
    source = store.existing(name)  # stays at its version while the other handle writes
    batches = _batches(source, HEAD if has_blobs else schema.names)
    rows = pa.RecordBatchReader.from_batches(schema, _whole(source, batches) if has_blobs else batches)
    run(store.existing(name).add(rows, "overwrite"))
    store.make_indexes(name)


def _batches(table: Table, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
    stream = run(table.query().select([*columns]).stream(BATCH_ROWS))
    while (batch := run(anext(stream, None))) is not None:
        yield batch


def _whole(table: Table, heads: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of `MEMORIES`: a query gives no payloads."""
    for batch in heads:
        rows = run(with_payloads(table, batch.to_pylist()))
        yield pa.RecordBatch.from_pylist([{name: row[name] for name in MEMORIES.names} for row in rows], MEMORIES)


def drop_unlisted(store: Store) -> None:
    """Removes tables that `meta.json` does not list: a writer was killed while it dropped them."""
    for name in set(run(store.database.names())) - store.meta.tables.keys():
        with store.removing(name):
            run(store.database.drop_table(name))


def delete_orphans(context: BankContext) -> int:
    """Removes rows, of any namespace, that have no chunk; returns how many."""
    return sum(
        context.delete(name, any_of("id", sorted(ids)[first : first + BATCH_ROWS]))
        for name, ids in orphans(context).items()
        for first in range(0, len(ids), BATCH_ROWS)
    )


def orphans(context: BankContext) -> dict[str, set[str]]:
    """Per table of memories, vectors and counts, the ids of its rows that have no chunk."""
    kinds, chunks = ("memories", "vectors", "usage"), _ids(context, CHUNKS_TABLE)
    names = [name for kind in kinds for name in context.store.meta.of_kind(kind)]
    rest = {name: _ids(context, name) - chunks for name in names}
    return {name: ids for name, ids in rest.items() if ids}


def _ids(context: BankContext, name: str) -> set[str]:
    """Of every namespace: an id is the hash of namespace and text, so no two namespaces share one."""
    table = context.read_columns(name, None, ["id"])
    return set() if table is None else set(table["id"].to_pylist())


# --- traces of what was removed ---------------------------------------------------------------


def removed_rows(context: BankContext) -> list[Row]:
    """Chunks of any namespace that older versions of the table on disk still hold, and the newest does not.

    Older versions are removed some minutes after a later change, and by `compact`.
    """
    store, current, rows = context.store, _ids(context, CHUNKS_TABLE), dict[str, Row]()
    for version in reversed(run(store.existing(CHUNKS_TABLE).versions())[:-1][-MAX_VERSIONS:]):
        with suppress(Exception):  # its files may be gone, as after a crash: then nobody can read them
            table = store.existing(CHUNKS_TABLE)
            run(table.checkout(version))
            ids = set(run(table.query().select(["id"]).to_arrow())["id"].to_pylist()) - current - rows.keys()
            for batch in _batches(table, READ) if ids else ():
                chosen = batch.filter(pa.array([id in ids for id in batch["id"].to_pylist()]))
                for row in rows_from_table(pa.Table.from_batches([chosen])):
                    rows[row.chunk.id] = row
    return list(rows.values())


def strings_of(rows: Iterable[Row]) -> set[str]:
    """Texts, sources, names and values of metadata: what a person could know a chunk by."""
    strings = set[str]()
    for row in rows:
        values = (row.chunk.source, *row.chunk.metadata, *row.chunk.metadata.values())
        strings |= {row.chunk.text, *(value for value in values if len(value) >= MIN_TRACE_CHARS)}
    return strings


def traces_of(context: BankContext, rows: Iterable[Row]) -> Traces:
    """Of chunks that are not in the table any more: all ids, and strings that can be searched for."""
    rows = list(rows)
    strings = sorted(each for each in strings_of(rows) if len(each.encode()) >= MIN_SEARCH_BYTES)
    if len(strings) > MAX_TRACES:
        strings = random.sample(strings, MAX_TRACES)
    return Traces({row.chunk.id for row in rows}, unique_strings(context, strings))


def unique_strings(context: BankContext, strings: Collection[str]) -> set[str]:
    """Those of `strings` that no chunk of any namespace has, in its text or beside it."""
    rest = set(strings)
    table = context.store.pinned(CHUNKS_TABLE)
    if table is None or not rest:
        return rest
    for batch in _batches(table, ("text", "record")):
        texts, records = "\0".join(batch["text"].to_pylist()), "\0".join(batch["record"].to_pylist())
        rest = {each for each in rest if each not in texts and _in_json(each) not in records}
    return rest


# --- the proof --------------------------------------------------------------------------------


def files_of_dirty_tables(store: Store) -> set[str]:
    """Files of tables that have had rows removed, as they are now, relative to the bank."""
    if store.sums is None:
        return set()
    return {file for name in store.meta.dirty for file in store.sums.files(f"{name}.lance")}


def leftovers(context: BankContext, old_files: set[str], traces: Traces) -> list[str]:
    """Tables and files that may still hold something of what was removed; [] is the proof that none does.

    Lance compresses what it writes, so that bytes which are not seen in a file prove nothing. What does: Lance never
    changes a file once written, and `meta.json` lists a table as dirty before rows of it go. So after each dirty
    table was written anew from the rows that are left, nothing of the others is on disk when
    (1) no table is dirty, and each has one version,
    (2) no file that a dirty table had before (`old_files`) is there any more: every file that it has now was written
        after the removal, from the rows that are left,
    (3) reading the ids of all rows of all tables shows no removed chunk, and no row without a chunk.
    Beyond that (4) the bytes of every file but the tensors' are searched for `traces`: a door that nobody thought of.
    """
    store = context.store
    left = [*store.meta.dirty]
    left += [name for name in store.meta.tables if store.exists(name) and traces.ids & _ids(context, name)]
    left += orphans(context)
    if store.folder is not None and store.sums is not None:
        for name in store.meta.tables:
            manifests = sorted((store.folder / f"{name}.lance" / "_versions").glob("*.manifest"))
            left += [f"{name}.lance: {len(manifests)} versions"] if len(manifests) > 1 else []
        left += sorted(old_files & set(store.sums.files()))
        left += _files_with(store.folder, store, traces)
    return list(dict.fromkeys(left))


def _files_with(folder: Path, store: Store, traces: Traces) -> list[str]:
    """Files whose bytes hold one of `traces`, as it is or as JSON writes it."""
    ids = [each.encode() for each in sorted(traces.ids)[:MAX_TRACES]]
    needles = {form.encode() for each in traces.strings for form in (each, _in_json(each), json.dumps(each)[1:-1])}
    tensors = {f"{name}.lance" for kind in ("memories", "vectors") for name in store.meta.of_kind(kind)}
    files = []
    for file in sorted(folder.rglob("*")) if ids else ():
        name = file.relative_to(folder)
        if name.parts[0] in tensors or not file.is_file() or not file.stat().st_size:
            continue
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            searched = ids if name.as_posix() in WITHOUT_TEXT else [*ids, *needles]
            if any(data.find(needle) >= 0 for needle in searched):
                files.append(name.as_posix())
    return files


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def remove_unfinished(folder: Path | None) -> None:
    """Removes files that a killed writer was about to put in place of others. The caller holds the lock."""
    for pattern in (".meta.json.*.tmp", ".sums.txt.*.tmp"):
        for file in [] if folder is None else folder.glob(pattern):
            file.unlink(missing_ok=True)


def disk_bytes(folder: Path | None) -> int:
    """Bytes of all files of the bank; 0 for a bank in RAM."""
    total = 0
    for file in [] if folder is None else folder.rglob("*"):
        with suppress(FileNotFoundError):  # another process compacts meanwhile
            total += file.stat().st_size if file.is_file() else 0
    return total
