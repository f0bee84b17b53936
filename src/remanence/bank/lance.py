"""Lance: its tables, its coroutines run from ordinary code, and its failures as one line that a person can act on.

`import lancedb` takes two to three seconds, nearly all of it for the models of a REST client that a local folder does
not need. Only the compiled module in it is loaded here, under its own name: a later `import lancedb` finds and uses
the same one. Its classes are those behind `lancedb.AsyncTable` and take the same arguments. They are not public, so
the metadata of this package allow only versions of LanceDB that passed the tests of this file.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa

from remanence.errors import BankBusy, BankCorrupted, BankError, RemanenceError

Result = TypeVar("Result")

COMPILED = "lancedb._lancedb"
INDEX_CACHE_BYTES, METADATA_CACHE_BYTES = 96 << 20, 32 << 20
MAX_TABLES = 10_000
ADDRESS = "_rowid"
"""The column that says where Lance keeps a row, in one version of a table."""
_loading = threading.Lock()


# --- tables -----------------------------------------------------------------------------------


def compiled() -> ModuleType:
    """LanceDB's compiled module. BankError where LanceDB is not installed."""
    with _loading:
        if module := sys.modules.get(COMPILED):
            return module
        package = importlib.util.find_spec("lancedb")
        if package is None:
            raise BankError("a bank needs the package 'lancedb'", "pip install lancedb")
        spec = importlib.machinery.PathFinder.find_spec(COMPILED, package.submodule_search_locations)
        if spec is None or spec.loader is None or "lancedb" in sys.modules:
            return importlib.import_module(COMPILED)
        module = sys.modules[COMPILED] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[COMPILED]
            raise
        return module


class Database:
    """A folder of tables; None: tables in RAM. Methods are coroutines for `run`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, folder: Path | None) -> Database:
        lance = compiled()
        session = lance.Session(INDEX_CACHE_BYTES, METADATA_CACHE_BYTES)
        rest = dict.fromkeys(
            ("read_consistency_interval", "client_config", "storage_options", "sql_host_override", "host_override")
        )
        uri = "memory://" if folder is None else str(folder)
        return cls(await lance.connect(uri, api_key=None, region="us-east-1", session=session, **rest))

    async def names(self) -> list[str]:
        listed = await self._connection.list_tables(namespace_path=[], page_token=None, limit=MAX_TABLES)
        return list(listed["tables"])

    async def open_table(self, name: str) -> Table:
        return Table(await self._connection.open_table(name, namespace_path=[]))

    async def create_table(self, name: str, schema: pa.Schema) -> None:
        await self._connection.create_empty_table(name, "create", schema, namespace_path=[])

    async def drop_table(self, name: str) -> None:
        await self._connection.drop_table(name, namespace_path=[])


class Table:
    """A table at one version; only what is written through this handle moves it on."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        """What `lancedb.AsyncTable` wraps."""

    async def version(self) -> int:
        return await self.handle.version()

    async def versions(self) -> list[int]:
        """Those that are still on disk, oldest first."""
        return sorted(entry["version"] for entry in await self.handle.list_versions())

    async def checkout(self, version: int) -> None:
        """Goes to an older version, for reading."""
        await self.handle.checkout(version)

    async def schema(self) -> pa.Schema:
        return await self.handle.schema()

    async def count_rows(self, where: str | None = None) -> int:
        return await self.handle.count_rows(where)

    def query(self) -> Query:
        return Query(self.handle.query())

    async def fetch_blobs(self, column: str, addresses: Sequence[int]) -> pa.Array:
        """Values of a blob column, in the order of `addresses`."""
        return await self.handle.fetch_blobs(column, list(addresses))

    async def add(self, rows: pa.Table | pa.RecordBatchReader, mode: Literal["append", "overwrite"] = "append") -> None:
        """`rows` are read as they are written: a reader's need not fit in RAM."""
        if isinstance(rows, pa.Table):
            data = _Rows(rows.schema, rows.num_rows, rows.to_reader)
        else:
            data = _Rows(rows.schema, None, lambda: rows, rescannable=False)
        await self.handle.add(data, mode)

    async def merge(self, rows: pa.Table, delete_where: str | None = None) -> None:
        """Adds rows in place of those with the same "id"; of the others, deletes those that meet `delete_where`."""
        merge = {
            "on": ["id"],
            "when_matched_update_all": True,
            "when_matched_update_all_condition": None,
            "when_not_matched_insert_all": True,
            "when_not_matched_by_source_delete": delete_where is not None,
            "when_not_matched_by_source_condition": delete_where,
            "when_not_matched_by_source_condition_expr": None,
            "timeout": None,
            "use_index": True,
            "use_lsm": None,
            "validate_single_shard": None,
        }
        await self.handle.execute_merge_insert(_as_stored(rows, await self.schema()).to_reader(), merge)

    async def delete(self, where: str) -> None:
        await self.handle.delete(where)

    async def indexes(self) -> dict[str, str]:
        """Column -> name of its index."""
        return {column: index.name for index in await self.handle.list_indices() for column in index.columns}

    async def create_index(self, column: str, kind: str, **settings: Any) -> None:
        """`kind` is a class of `lancedb.index`: "BTree", "Bitmap", "FTS", "IvfSq". Replaces an index of this column."""
        config = getattr(importlib.import_module("lancedb.index"), kind)(**settings)
        await self.handle.create_index(column, index=config, replace=None, wait_timeout=None, name=None, train=True)

    async def drop_index(self, name: str) -> None:
        await self.handle.drop_index(name)

    async def optimize(self, keep: timedelta) -> None:
        """Merges small files, brings indexes up to date, removes versions older than `keep`.

        No other writer may be at work: files of a commit that is not finished go too.
        """
        milliseconds = round(keep.total_seconds() * 1000)
        await self.handle.optimize(cleanup_since_ms=milliseconds, delete_unverified=True)

    async def num_small_fragments(self) -> int:
        return (await self.handle.stats())["fragment_stats"]["num_small_fragments"]


def _as_stored(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """`rows` with the columns of `schema`. Of a blob, Lance keeps a struct of bytes and URI, and a merge expects it."""
    columns = []
    for field, column in ((schema.field(name), rows[name].combine_chunks()) for name in rows.column_names):
        if pa.types.is_struct(field.type) and not pa.types.is_struct(column.type):
            no_uri = pa.nulls(len(column), field.type.field("uri").type)
            column = pa.StructArray.from_arrays([column, no_uri], fields=list(field.type))
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=pa.schema([schema.field(name) for name in rows.column_names]))


@dataclass
class _Rows:
    """Rows to add, as the compiled module wants them described."""

    schema: pa.Schema
    num_rows: int | None
    reader: Callable[[], pa.RecordBatchReader]
    rescannable: bool = True


class Query:
    """A search of a table. Every method changes the query and gives it back; what ends it is a coroutine."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def where(self, condition: str) -> Query:
        self._handle.where(condition)
        return self

    def select(self, columns: Sequence[str]) -> Query:
        self._handle.select_columns(list(columns))
        return self

    def limit(self, num_rows: int) -> Query:
        self._handle.limit(num_rows)
        return self

    def nearest_to_text(self, words: str, column: str) -> Query:
        """By BM25; any of `words` is enough. Scores are in the column "_score"."""
        return Query(self._handle.nearest_to_text({"query": words, "columns": [column]}))

    def nearest_to(self, vector_E: np.ndarray, column: str, num_probes: int | None) -> Query:
        """By cosine; distances are in the column "_distance". `num_probes` None: exact, past an index."""
        query = self._handle.nearest_to(pa.array(vector_E))
        query.column(column)
        query.distance_type("cosine")
        if num_probes is None:
            query.bypass_vector_index()
        else:
            query.nprobes(num_probes)
        return Query(query)

    async def stream(self, batch_rows: int | None = None) -> BatchStream:
        """The result, at most `batch_rows` rows at a time; None: as Lance reads them."""
        return BatchStream(await self._handle.execute(max_batch_length=batch_rows, timeout=None))

    async def to_arrow(self) -> pa.Table:
        stream = await self.stream()
        return pa.Table.from_batches([batch async for batch in stream], stream.schema)


class BatchStream:
    """An async iterator of record batches. (Python's `anext` with a default crashes on the compiled one.)"""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.schema: pa.Schema = handle.schema

    def __aiter__(self) -> BatchStream:
        return self

    async def __anext__(self) -> pa.RecordBatch:
        return await self._handle.__anext__()


# --- coroutines -------------------------------------------------------------------------------

_loops: dict[int, asyncio.AbstractEventLoop] = {}
_starting = threading.Lock()


def run(awaitable: Awaitable[Result]) -> Result:
    """Waits for `awaitable`, from any thread but that of the event loop. A fork gets a loop of its own."""

    async def wait() -> Result:
        return await awaitable

    return asyncio.run_coroutine_threadsafe(wait(), _loop()).result()


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="remanence-bank", daemon=True).start()
        return loop


# --- failures ---------------------------------------------------------------------------------

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = ("no space left", "quota exceeded", "file too large", *(f"os error {code}" for code in FULL))
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
DENIED_WORDS = ("permission denied", "read-only file system", *(f"os error {code}" for code in DENIED))
CONFLICT_WORDS = ("commit conflict", "too many concurrent writers", "concurrent transaction")
MAX_REASON_CHARS = 200
NOT_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)
BUGS = (TypeError, AttributeError, NameError, AssertionError)
"""A mistake in the code that calls, never damage on disk: raised as it is."""


@contextmanager
def bank_errors(name: str) -> Iterator[None]:
    """Turns whatever Lance raises inside, Rust panics included, into a BankError that names bank `name`."""
    try:
        yield
    except (RemanenceError, *NOT_OURS, *BUGS):
        raise
    except BaseException as error:  # a Rust panic is no Exception
        raise explain(name, error) from None


def explain(name: str, error: BaseException) -> BankError:
    """What went wrong with bank `name`, in words."""
    text = str(error)
    words, code = text.lower(), getattr(error, "errno", None)
    if code in FULL or _has_any(words, FULL_WORDS):
        hint = "free some space and repeat the call: what the bank held before is unchanged"
        return BankError(f"no space left on the disk of bank {name!r}", hint)
    if code in DENIED or _has_any(words, DENIED_WORDS):
        return BankError(f"no permission to use bank {name!r}", "check the owner and mode of its folder and files")
    if _has_any(words, CONFLICT_WORDS):
        return BankBusy(f"another writer changed bank {name!r} at the same moment", "repeat the call")
    reason = f"{type(error).__name__}: {' '.join(text.split())[:MAX_REASON_CHARS]}"
    hint = "run `remanence bank verify`; text that is intact can be saved with `remanence bank export`"
    return BankCorrupted(f"bank {name!r} cannot be read or written ({reason})", hint)


def _has_any(words: str, parts: tuple[str, ...]) -> bool:
    return any(part in words for part in parts)


# --- settings of the process ------------------------------------------------------------------

M_ARENA_MAX, NUM_ARENAS = -8, 4


def prepare_process() -> None:
    """Call this before Lance starts its threads. Variables that are set already stay as they are."""
    settings = {
        "LANCE_LOG": "error",  # else notes to Lance's developers go to standard error
        "LANCEDB_LOG": "error",
        # Lance reserves cores for reading, but a bank's queries are nearly all computing (docs/notebook.md).
        "LANCE_CPU_THREADS": str(max(2, os.cpu_count() or 1)),
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    # Threads share a few heaps instead of having eight for each core: with Lance's many, half a gigabyte less.
    _call_libc("mallopt", M_ARENA_MAX, NUM_ARENAS)


def trim_heap() -> None:
    """Gives free memory back to the system, after work that allocated much."""
    _call_libc("malloc_trim", 0)


def _call_libc(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library without it
            getattr(ctypes.CDLL(None), function)(*arguments)
