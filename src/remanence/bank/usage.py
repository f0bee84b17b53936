"""How often and when chunks were recalled: counted in RAM, written with the next change or on close."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pyarrow as pa

from remanence.bank.context import BankContext, in_parts
from remanence.bank.rows import USAGE, any_of
from remanence.bank.store import USAGE_TABLE
from remanence.errors import BankError

Count = tuple[int, float]


class RecallCounts:
    """A crash loses the counts since the last change of the bank, never more and never a chunk."""

    def __init__(self, context: BankContext) -> None:
        self.context = context
        self._pending: dict[str, Count] = {}
        self._lock = threading.Lock()

    def note(self, ids: Sequence[str]) -> None:
        now = self.context.clock()
        with self._lock:
            for id in ids:
                self._pending[id] = (self._pending.get(id, (0, 0.0))[0] + 1, now)

    def counts(self) -> dict[str, Count]:
        """Chunk id -> (number of recalls, time of the last), for what was ever recalled."""
        stored = _by_id(self.context.read_columns(USAGE_TABLE, self.context.where(), USAGE.names))
        with self._lock:
            pending = dict(self._pending)
        return stored | {id: _sum(stored.get(id), count) for id, count in pending.items()}

    def flush(self) -> None:
        """Writes what is pending; ids that were forgotten meanwhile are dropped.

        A bank that cannot be written to now keeps them pending: a count must not cost the change or answer it is of.
        """
        with self._lock:
            pending, self._pending = self._pending, {}
        if not pending:
            return
        try:
            self._write(pending)
        except BankError:
            with self._lock:
                for id, count in pending.items():
                    self._pending[id] = _sum(self._pending.get(id), count)

    def _write(self, pending: dict[str, Count]) -> None:
        with self.context.store.writing():
            pending = {id: pending[id] for id in self.context.live(pending)}
            stored = self._stored(list(pending))
            rows = [
                {"id": id, "namespace": self.context.namespace, "num_recalls": total[0], "last_recalled": total[1]}
                for id, total in ((id, _sum(stored.get(id), count)) for id, count in pending.items())
            ]
            self.context.upsert(USAGE_TABLE, pa.Table.from_pylist(rows, schema=USAGE))

    def forget(self, ids: Sequence[str], condition: str) -> None:
        with self._lock:
            for id in ids:
                self._pending.pop(id, None)
        self.context.delete(USAGE_TABLE, condition)

    def _stored(self, ids: list[str]) -> dict[str, Count]:
        stored: dict[str, Count] = {}
        for part in in_parts(ids):
            where = self.context.where(any_of("id", part))
            stored |= _by_id(self.context.read_columns(USAGE_TABLE, where, USAGE.names))
        return stored


def _by_id(table: pa.Table | None) -> dict[str, Count]:
    rows = table.to_pylist() if table is not None else []
    return {row["id"]: (row["num_recalls"], row["last_recalled"]) for row in rows}


def _sum(stored: Count | None, new: Count) -> Count:
    return new if stored is None else (stored[0] + new[0], max(stored[1], new[1]))
