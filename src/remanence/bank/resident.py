"""Rows of a table held in RAM once it is read again and again: where each stands, and for small tables what it says.

A query of Lance plans for a millisecond before it reads; a recall that asks for ids, texts and rows one after
another is mostly planning. Rows of one version are read in one go; any change of the table drops them, at the next
look-up where another process made the change.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from remanence.bank.draft import ID
from remanence.bank.store import Pin, Store
from remanence.errors import BankError

READS_BEFORE = 8
"""A version is read so often before its rows are: a bank that is written all the time is not read whole each time."""
LIMIT_BYTES, MAX_ROWS = 128 << 20, 500_000
"""Of one table."""
ADDRESS = "_rowid"
"""Where Lance keeps a row, in one version of a table."""


@dataclass(frozen=True)
class Rows:
    """All rows of one edition, by id and by address. `place`: the number of a row in `table`."""

    edition: tuple[int, ...]
    table: pa.Table
    address_N: np.ndarray
    by_address_N: np.ndarray
    id_N: np.ndarray
    by_id_N: np.ndarray

    def by_ids(self, ids: Iterable[str]) -> dict[str, int]:
        """Id -> place, of those that are there."""
        ids = list(ids)
        found = _places(self.id_N, self.by_id_N, _as_numbers(ids))
        return {id: place for id, place in zip(ids, found, strict=True) if place >= 0}

    def by_addresses(self, addresses: Sequence[int]) -> list[int]:
        """Places; KeyError where this version has no such row."""
        found = _places(self.address_N, self.by_address_N, np.array(addresses, dtype=np.uint64))
        if -1 in found:
            raise KeyError(addresses[found.index(-1)])
        return found

    def read(self, places: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        found = {name: self.table[name].chunk(0) for name in columns} if places else {}
        return [{name: column[place].as_py() for name, column in found.items()} for place in places]


class Resident:
    """The rows of table `name` with `columns` ("id" is one), for as long as it stays as it is."""

    def __init__(self, store: Store, name: str, columns: Sequence[str]) -> None:
        self.store, self.name, self.columns = store, name, list(columns)
        self._lock, self._too_many = threading.Lock(), MAX_ROWS + 1
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._rows: Rows | None = None
            self._edition: tuple[int, ...] | None = None
            self._reads = 0

    @property
    def num_bytes(self) -> int:
        rows = self._rows
        return 0 if rows is None else rows.table.nbytes + 4 * rows.id_N.nbytes

    def rows(self) -> Rows | None:
        """Those of the newest version; None until it was asked for often enough, where they are too many, and for
        a writer, whose next change would drop them."""
        if self.store.is_writing:
            return None
        edition = self.store.edition(self.name)
        with self._lock:
            if edition != self._edition:
                self._rows, self._edition, self._reads = None, edition, 0
            self._reads += 1
            if self._reads != READS_BEFORE:
                return self._rows
        rows = self._load(edition)
        with self._lock:  # unless all was forgotten, or changed, meanwhile
            if edition == self._edition:
                self._rows = rows
        return rows

    def _load(self, edition: tuple[int, ...]) -> Rows | None:
        async def read(pin: Pin) -> pa.Table | None:
            num_rows = await pin.table.count_rows()
            if pin.edition != edition or num_rows >= self._too_many:
                return None
            batches, num_bytes = [], 0
            reader = await pin.table.query().select([*self.columns, ADDRESS]).to_batches()
            async for batch in reader:
                batches.append(batch)
                num_bytes += batch.nbytes
                if num_bytes > LIMIT_BYTES:
                    self._too_many = num_rows
                    return None
            return pa.Table.from_batches(batches, reader.schema).combine_chunks()

        table = None
        with suppress(BankError):  # whoever needs what is damaged is told; others do not need it
            table = self.store.read_at((self.name,), read, None)
        if table is None:
            return None
        ids, addresses = _as_numbers(table["id"].to_pylist()), table[ADDRESS].to_numpy()
        by_address, by_id = np.argsort(addresses), np.argsort(ids)
        return Rows(edition, table, addresses[by_address], by_address, ids[by_id], by_id)


def _as_numbers(ids: Sequence[str]) -> np.ndarray:
    """16 hex digits are 64 bits; what is no id is 0, the id of no row but by the rarest chance."""
    return np.array([int(id, 16) if ID.fullmatch(id) else 0 for id in ids], dtype=np.uint64)


def _places(sorted_N: np.ndarray, place_N: np.ndarray, wanted: np.ndarray) -> list[int]:
    """Where each wanted number stands; -1: nowhere."""
    if not len(sorted_N):
        return [-1] * len(wanted)
    at = np.searchsorted(sorted_N, wanted).clip(max=len(sorted_N) - 1)
    return np.where(sorted_N[at] == wanted, place_N[at], -1).tolist()
