"""The tables of one bank in Lance: each opened once per version, changed by one writer at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from remanence.bank.checksums import FileSums
from remanence.bank.lance import Database, Table, bank_errors, compiled, prepare_process, run, trim_heap
from remanence.bank.meta import Meta, TextIndex, check_empty, read_meta, write_meta
from remanence.bank.rows import CHUNKS, USAGE
from remanence.errors import BankCorrupted, InputError
from remanence.files import writer_lock

Result = TypeVar("Result")

CHUNKS_TABLE, USAGE_TABLE = "chunks", "usage"
MIN_LOOSE_COMMITS, MIN_LOOSE_ROWS, LOOSE_SHARE = 64, 2_000, 0.2
MAX_LOOSE_COMMITS = {"vector": 256, "payload": 2_000}
"""A table is tidied after so many commits (later where that costs more, by its last column), or once so many rows
and such a share of it are in no index: then all tidying together costs a small multiple of the writing."""
MIN_ROWS_FOR_VECTOR_INDEX, PARTITION_ROWS = 20_000, 2_000
BULK_ROWS = 256
RECENT_NS = 3_000_000_000
"""Coarser than the clock of any file system: a folder that changed earlier has not changed twice within one tick."""
AT_ONCE = timedelta(0)
KEEP_VERSIONS = timedelta(minutes=5)
"""Long enough for a reader in another process to finish what it began."""


@dataclass(frozen=True)
class PinnedTable:
    """A table opened at one version, where it stays, whatever is written.

    `version_key` differs for any two states of any two tables of a name: one that was dropped and made again counts
    its versions, the last number, from 1 again. `stamp`: when the folder changed last, in nanoseconds; 0: so recently
    that a later change could have the same time.
    """

    table: Table
    version_key: tuple[int, ...]
    stamp: int

    @property
    def version(self) -> int:
        return self.version_key[-1]


class Store:
    """`folder` None: everything in RAM, gone with the store."""

    def __init__(self, folder: Path | None, lock_seconds: float, text_index: TextIndex | None) -> None:
        self.folder, self.lock_seconds = folder, lock_seconds
        self.name = str(folder) if folder else "in RAM"
        self.sums = FileSums(folder) if folder else None
        self._pinned: dict[str, PinnedTable] = {}
        self._num_writes = 1
        self._num_made: dict[str, int] = {}
        self._loose: dict[str, list[int]] = {}
        self._mutex, self._depth, self.is_open = threading.RLock(), 0, True
        prepare_process()
        compiled()  # BankError where LanceDB is not installed, before a folder is made
        with bank_errors(self.name):
            self.meta = self._open_meta(text_index)
            self._meta_read = self._meta_stamp()
            self._db: Database | None = run(Database.open(folder))
            if not self.meta.ready:
                self._make_tables()
            elif not self.exists(CHUNKS_TABLE):
                hint = "restore the folder chunks.lance from a copy of the bank"
                raise BankCorrupted(f"bank {self.name!r} has lost its table of chunks", hint)

    def _open_meta(self, text_index: TextIndex | None) -> Meta:
        if self.folder is None:
            return Meta(text_index or TextIndex())
        meta = read_meta(self.folder) if self.folder.is_dir() else None
        if meta is None:
            if self.folder.exists() and not self.folder.is_dir():
                raise InputError(f"bank {self.name!r} is a file", "give a folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            check_empty(self.folder)
            with writer_lock(self.folder / "bank.lock", self.lock_seconds):
                meta = read_meta(self.folder) or Meta(text_index or TextIndex())
                write_meta(self.folder, meta)
        return meta

    def _make_tables(self) -> None:
        with self.writing():
            if not self.meta.ready:
                self.create(CHUNKS_TABLE, CHUNKS, {"kind": "chunks"})
                self.create(USAGE_TABLE, USAGE, {"kind": "usage"})
                self.meta.ready = True
                self.save_meta()

    # --- reading ------------------------------------------------------------------------------

    async def _pin(self, name: str) -> PinnedTable | None:
        """Table `name` at its newest version; None where the bank has none of this name.

        Opened anew for each version (a third of a millisecond): a handle that moves on would do so under whoever
        reads in another thread.
        """
        if name not in self.meta.tables:
            self._reload_meta()
        if name not in self.meta.tables:
            return None
        pinned, stamp = self._pinned.get(name), self._stamp(name)
        if pinned is not None and stamp and pinned.stamp == stamp:
            return pinned
        settled = self.folder is None or time.time_ns() - stamp > RECENT_NS
        if pinned is None and name not in await self.database.names():
            return None
        while True:
            made, table = self._made(name), await self.database.open_table(name)
            pinned = PinnedTable(table, (*made, await table.version()), stamp if settled else 0)
            if made == self._made(name):  # else it was dropped and made again meanwhile
                self._pinned[name] = pinned
                return pinned

    def _made(self, name: str) -> tuple[int, ...]:
        """Tells a table from another one that had its name."""
        made = self._num_made.get(name, 0)
        if self.folder is None:
            return (made,)
        status = os.stat(f"{self.folder}/{name}.lance")
        return made, status.st_ino, status.st_ctime_ns

    def _stamp(self, name: str) -> int:
        """When a version of table `name` was last added or removed, in nanoseconds; in RAM: after how many writes,
        and 0 during one."""
        if self.folder is None:
            return 0 if self._depth else self._num_writes
        try:
            # No `Path`, which is slow: this is asked for all the time.
            return os.stat(f"{self.folder}/{name}.lance/_versions").st_mtime_ns
        except OSError:
            return time.time_ns()

    @property
    def database(self) -> Database:
        """Lance's own view of the folder. InputError for a bank that was closed."""
        if self._db is None:
            raise InputError(f"bank {self.name!r} is closed", "open it again with `Bank.open`")
        return self._db

    def pinned(self, name: str) -> Table | None:
        """Table `name` for reading; it stays at its version, whatever else this store reads and writes."""

        async def table(pinned: PinnedTable) -> Table:
            return pinned.table

        return self.read_at((name,), table, None)

    def exists(self, name: str) -> bool:
        return self.pinned(name) is not None

    def existing(self, name: str) -> Table:
        """A table that the bank must have, for writing: opened anew, since what writes moves its handle on."""

        async def opened() -> Table | None:
            return await self.database.open_table(name) if name in await self.database.names() else None

        with bank_errors(self.name):
            table = run(opened())
        if table is None:
            raise BankCorrupted(f"bank {self.name!r} has lost its table {name!r}", "run `remanence bank verify`")
        return table

    def read(self, name: str, action: Callable[[Table], Awaitable[Result]], empty: Result) -> Result:
        """What `action` on table `name` gives; `empty`: there is no such table."""
        return self.read_at((name,), lambda pinned: action(pinned.table), empty)

    def read_at(self, names: Sequence[str], action: Callable[..., Awaitable[Result]], empty: Result) -> Result:
        """`action` on the pinned tables of `names`; once more if a `compact` elsewhere took their files away."""

        async def attempt() -> Result:
            tables = [await self._pin(name) for name in names]
            return empty if None in tables else await action(*tables)

        with bank_errors(self.name):
            try:
                return run(attempt())
            except Exception:
                for name in names:
                    self._pinned.pop(name, None)
                self._reload_meta()
            return run(attempt())

    def version_key(self, name: str) -> tuple[int, ...]:
        """Of the newest state, whoever made it (see `PinnedTable`); (0,) where there is no such table."""
        pinned = self._pinned.get(name)
        if pinned is not None and pinned.stamp and pinned.stamp == self._stamp(name):
            return pinned.version_key

        async def version_key(pinned: PinnedTable) -> tuple[int, ...]:
            return pinned.version_key

        return self.read_at((name,), version_key, (0,))

    def version(self, name: str) -> int:
        """Grows with every change of the table, whoever made it; 0 where there is none."""
        return self.version_key(name)[-1]

    @property
    def is_writing(self) -> bool:
        """Whether this store holds the writers' lock now."""
        return self._depth > 0

    # --- writing ------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone among all writers, with what the others wrote; may be nested."""
        with self._mutex:
            outermost = self._depth == 0 and self.folder is not None
            lock = (
                writer_lock(self.folder / "bank.lock", self.lock_seconds)
                if outermost and self.folder
                else nullcontext()
            )
            with bank_errors(self.name), lock:
                self._depth += 1
                try:
                    if outermost:
                        self._reload_meta()
                    yield
                finally:
                    self._num_writes += 1
                    self._depth -= 1

    def commit(self, name: str, action: Callable[[Table], Awaitable[Any]], num_rows: int = 0) -> None:
        """One change of table `name`: atomic, and on disk when this returns."""
        with self.writing():
            table = self.existing(name)
            run(action(table))
            self.sync(name)
            with suppress(Exception):  # the change is safe; the next one reports a full disk
                self._tidy(name, table, num_rows)
            if num_rows >= BULK_ROWS:
                trim_heap()

    def create(self, name: str, schema: pa.Schema, entry: dict[str, Any]) -> None:
        """Makes table `name` if it is missing, with its indexes; `entry` says in `meta.json` what it holds."""
        with self.writing():
            if self.meta.tables.get(name) != entry:
                self.meta.tables[name] = entry
                self.save_meta()
            if name not in run(self.database.names()):
                run(self.database.create_table(name, schema))
                self._num_made[name] = self._num_made.get(name, 0) + 1
                self.make_indexes(name)
                self.sync(name)

    def drop(self, name: str) -> None:
        with self.writing():
            self._pinned.pop(name, None)
            self.meta.tables.pop(name, None)
            self.meta.dirty = [other for other in self.meta.dirty if other != name]
            with self.removing(name):
                run(self.database.drop_table(name))
            self.save_meta()

    def mark_dirty(self, name: str) -> None:
        """Remembers, before rows go, that their bytes stay on disk until `compact`."""
        if name not in self.meta.dirty:
            self.meta.dirty.append(name)
            self.save_meta()

    def save_meta(self) -> None:
        if self.folder:
            write_meta(self.folder, self.meta)
            self._meta_read = self._meta_stamp()

    # --- indexes and files --------------------------------------------------------------------

    def make_indexes(self, name: str, anew: bool = False) -> None:
        """Those of `name` that are missing, or all; a vector index only where the table is large enough for one."""
        table = self.existing(name)
        present = run(table.indexes())
        wanted: dict[str, tuple[str, dict[str, Any]]] = {}
        if name != USAGE_TABLE:
            wanted = {"id": ("BTree", {}), "namespace": ("Bitmap", {})}
        if name == CHUNKS_TABLE:
            wanted["text"] = ("FTS", self.meta.text_index.settings())
            wanted |= dict.fromkeys(("expires", "hidden_until", "supersedes"), ("BTree", {}))
        if "vector" in run(table.schema()).names and run(table.count_rows()) >= MIN_ROWS_FOR_VECTOR_INDEX:
            partitions = max(1, run(table.count_rows()) // PARTITION_ROWS)
            wanted["vector"] = ("IvfSq", {"distance_type": "cosine", "num_partitions": partitions})
        for column, (kind, settings) in wanted.items():
            if anew or column not in present:
                run(table.create_index(column, kind, **settings))

    def refresh(self, name: str) -> None:
        """Brings the indexes of `name` up to date; rows with long payloads stay in the files that they are in."""
        if run(self.existing(name).schema()).names[-1] != "payload":
            return self.optimize(name)
        self.make_indexes(name, anew=True)
        self.sync(name)
        trim_heap()
        self._loose.setdefault(name, [0, 0])[1] = 0

    def optimize(self, name: str, keep: timedelta = KEEP_VERSIONS) -> None:
        """Merges small files, brings indexes up to date, and removes versions older than `keep`."""
        table = self.existing(name)
        if index := run(table.indexes()).get("vector"):
            run(table.drop_index(index))  # made anew: Lance 0.40 loses partitions when it merges two of these
        with self.removing(name):
            run(table.optimize(keep))  # no other writer is at work: this store holds the lock
            self.make_indexes(name)
            if keep == AT_ONCE:  # the versions before those indexes, too
                run(self.existing(name).optimize(keep))
        self._loose[name] = [0, 0]
        trim_heap()

    @contextmanager
    def removing(self, name: str) -> Iterator[None]:
        """Files of table `name` may go: `verify` must not miss them, not even after a crash in between."""
        if self.sums:
            self.sums.begin_cleanup(f"{name}.lance")
        yield
        if self.sums:
            self.sums.add(f"{name}.lance")
            self.sums.end_cleanup(f"{name}.lance")

    def sync(self, name: str) -> None:
        """Waits until every new file of table `name` is on disk, and records its sum."""
        if self.sums:
            self.sums.add(f"{name}.lance")

    def _tidy(self, name: str, table: Table, num_rows: int) -> None:
        if name not in self._loose:
            self._loose[name] = [run(table.num_small_fragments()), 0]
        loose = self._loose[name]
        loose[0], loose[1] = loose[0] + 1, loose[1] + num_rows
        if loose[0] >= MAX_LOOSE_COMMITS.get(run(table.schema()).names[-1], MIN_LOOSE_COMMITS):
            self.optimize(name)
        elif loose[1] >= max(MIN_LOOSE_ROWS, LOOSE_SHARE * run(table.count_rows())):
            self.refresh(name)

    def _meta_stamp(self) -> tuple[int, int] | None:
        if self.folder is None:
            return None
        status = (self.folder / "meta.json").stat()
        return status.st_ino, status.st_mtime_ns

    def _reload_meta(self) -> None:
        if self.folder is None or self._meta_stamp() == self._meta_read:
            return
        stamp, meta = self._meta_stamp(), read_meta(self.folder)
        if meta is not None:
            self.meta, self._meta_read = meta, stamp

    def close(self) -> None:
        self._pinned.clear()
        self._db, self.is_open = None, False
