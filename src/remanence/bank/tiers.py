"""What a bank holds in RAM of what is on disk: the memories used last, and the rows of tables that are read often."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from remanence.bank.lance import ADDRESS
from remanence.bank.new_chunk import ID
from remanence.bank.store import PinnedTable, Store
from remanence.errors import BankError
from remanence.types import Memory

READS_BEFORE = 8
"""A version is read so often before its rows are: a bank that is written all the time is not read whole each time."""
LIMIT_BYTES, MAX_ROWS = 128 << 20, 500_000
"""Of one table."""


class MemoryCache:
    """The memories that were used last, up to `limit_bytes`. A memory larger than that stays on disk."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.num_bytes = self.hits = self.misses = 0
        self._entries: OrderedDict[tuple[str, str], Memory] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, fingerprint: str, id: str) -> Memory | None:
        with self._lock:
            memory = self._entries.get((fingerprint, id))
            if memory is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end((fingerprint, id))
            return memory

    def put(self, fingerprint: str, id: str, memory: Memory) -> None:
        with self._lock:
            self._drop((fingerprint, id))
            size = memory_bytes(memory)
            if size > self.limit_bytes:
                return
            self._entries[fingerprint, id] = memory
            self.num_bytes += size
            while self.num_bytes > self.limit_bytes:
                self._drop(next(iter(self._entries)))

    def discard(self, ids: Iterable[str]) -> None:
        """Drops the memories of these chunks, of every fingerprint."""
        gone = set(ids)
        with self._lock:
            for key in [key for key in self._entries if key[1] in gone]:
                self._drop(key)

    def clear(self, fingerprint: str) -> None:
        with self._lock:
            for key in [key for key in self._entries if key[0] == fingerprint]:
                self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        memory = self._entries.pop(key, None)
        if memory is not None:
            self.num_bytes -= memory_bytes(memory)


def memory_bytes(memory: Memory) -> int:
    """Bytes that a memory takes in RAM, positions included."""
    return memory.num_bytes + memory.index_LGN.nbytes


@dataclass(frozen=True)
class LoadedRows:
    """All rows of one version of a table, by id and by address. A row's place is its number in `table`."""

    version_key: tuple[int, ...]
    table: pa.Table
    address_N: np.ndarray
    by_address_N: np.ndarray
    id_N: np.ndarray
    by_id_N: np.ndarray

    def by_ids(self, ids: Iterable[str]) -> dict[str, int]:
        """Id -> place, of those that are there."""
        ids = list(ids)
        places = _places(self.id_N, self.by_id_N, _as_numbers(ids))
        return {id: place for id, place in zip(ids, places, strict=True) if place >= 0}

    def by_addresses(self, addresses: Sequence[int]) -> list[int]:
        """Places; KeyError where this version has no such row."""
        places = _places(self.address_N, self.by_address_N, np.array(addresses, dtype=np.uint64))
        if -1 in places:
            raise KeyError(addresses[places.index(-1)])
        return places

    def read(self, places: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        arrays = {name: self.table[name].chunk(0) for name in columns} if places else {}
        return [{name: array[place].as_py() for name, array in arrays.items()} for place in places]


class TableRows:
    """Rows of table `name` in RAM, with `columns` ("id" is one), once a version of it has been read a few times.

    A query of Lance plans for a millisecond before it reads; a recall that asks for ids, texts and rows one after
    another is mostly planning. The rows of one version are read in one go. Any change of the table drops them, at the
    next look-up where another process made the change.
    """

    def __init__(self, store: Store, name: str, columns: Sequence[str]) -> None:
        self.store, self.name, self.columns = store, name, list(columns)
        self._lock, self._too_many = threading.Lock(), MAX_ROWS + 1
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._rows: LoadedRows | None = None
            self._version_key: tuple[int, ...] | None = None
            self._num_reads = 0

    @property
    def is_loaded(self) -> bool:
        return self._rows is not None

    @property
    def num_bytes(self) -> int:
        rows = self._rows
        return 0 if rows is None else rows.table.nbytes + 4 * rows.id_N.nbytes

    def current(self) -> LoadedRows | None:
        """The rows of the newest version. None until it was read often enough, where the table is too large, and for
        a writer, whose next change would drop them."""
        if self.store.is_writing:
            return None
        version_key = self.store.version_key(self.name)
        with self._lock:
            if version_key != self._version_key:
                self._rows, self._version_key, self._num_reads = None, version_key, 0
            self._num_reads += 1
            if self._num_reads != READS_BEFORE:
                return self._rows
        rows = self.load(version_key)
        with self._lock:  # unless all was forgotten, or changed, meanwhile
            if version_key == self._version_key:
                self._rows = rows
        return rows

    def load(self, version_key: tuple[int, ...]) -> LoadedRows | None:
        """The rows of this version, read from disk now. None: it is not the newest any more, or too large."""

        async def read(pinned: PinnedTable) -> pa.Table | None:
            num_rows = await pinned.table.count_rows()
            if pinned.version_key != version_key or num_rows >= self._too_many:
                return None
            batches, num_bytes = [], 0
            stream = await pinned.table.query().select([*self.columns, ADDRESS]).stream()
            async for batch in stream:
                batches.append(batch)
                num_bytes += batch.nbytes
                if num_bytes > LIMIT_BYTES:
                    self._too_many = num_rows
                    return None
            return pa.Table.from_batches(batches, stream.schema).combine_chunks()

        table = None
        with suppress(BankError):  # whoever needs a damaged row gets the error; others do not need it
            table = self.store.read_at((self.name,), read, None)
        if table is None:
            return None
        ids, addresses = _as_numbers(table["id"].to_pylist()), table[ADDRESS].to_numpy()
        by_address, by_id = np.argsort(addresses), np.argsort(ids)
        return LoadedRows(version_key, table, addresses[by_address], by_address, ids[by_id], by_id)


def _as_numbers(ids: Sequence[str]) -> np.ndarray:
    """16 hex digits are 64 bits; what is no id is 0, the id of no row but by the rarest chance."""
    return np.array([int(id, 16) if ID.fullmatch(id) else 0 for id in ids], dtype=np.uint64)


def _places(sorted_N: np.ndarray, place_N: np.ndarray, numbers: np.ndarray) -> list[int]:
    """Where each of `numbers` is; -1: nowhere."""
    if not len(sorted_N):
        return [-1] * len(numbers)
    at = np.searchsorted(sorted_N, numbers).clip(max=len(sorted_N) - 1)
    return np.where(sorted_N[at] == numbers, place_N[at], -1).tolist()
