"""What every part of a bank works with: the store, whose chunks they are, and the rows that these are in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from remanence.bank.lance import Table
from remanence.bank.rows import READ, Row, any_of, quote, row_from_dict, rows_from_table
from remanence.bank.store import CHUNKS_TABLE, Store
from remanence.bank.tiers import TableRows

LOOKUP_ROWS = 1_000
"""Ids per look-up: a condition of this length is still quick to parse."""


@dataclass(frozen=True)
class BankContext:
    """One namespace of a store; whatever runs through `where` cannot reach another's rows."""

    store: Store
    namespace: str
    clock: Callable[[], float]
    chunk_rows: TableRows

    # --- conditions ---------------------------------------------------------------------------

    def where(self, condition: str = "") -> str:
        mine = f"namespace = {quote(self.namespace)}"
        return f"{mine} AND ({condition})" if condition else mine

    def is_live(self) -> str:
        return f"(expires IS NULL OR expires > {self.clock()!r})"

    def is_visible(self) -> str:
        return f"{self.is_live()} AND (hidden_until IS NULL OR hidden_until <= {self.clock()!r})"

    # --- rows of chunks -----------------------------------------------------------------------

    def find(self, column: str, values: Iterable[str]) -> list[Row]:
        """Rows of this namespace whose `column` is one of `values`, expired ones too, in no order.

        Few rows have the value, so the namespace is compared here: its index would list the whole namespace.
        """
        values, rows = list(values), []
        loaded = self.chunk_rows.current() if column == "id" else None
        if loaded is not None:
            columns = loaded.read([*loaded.by_ids(values).values()], READ)
            return [row for row in map(row_from_dict, columns) if row.chunk.namespace == self.namespace]
        for part in in_parts(values):
            table = self.read_columns(CHUNKS_TABLE, any_of(column, part), READ)
            rows += rows_from_table(table) if table is not None else []
        return [row for row in rows if row.chunk.namespace == self.namespace]

    def live(self, ids: Iterable[str]) -> dict[str, Row]:
        """By id, without what has expired."""
        now = self.clock()
        return {row.chunk.id: row for row in self.find("id", ids) if not row.expired(now)}

    # --- rows of any table --------------------------------------------------------------------

    def read_columns(self, name: str, condition: str | None, columns: Sequence[str]) -> pa.Table | None:
        """`columns` of the rows of table `name` that meet `condition` (None: of all); None without such a table."""

        async def read(table: Table) -> pa.Table:
            query = table.query().select(columns)
            return await (query.where(condition) if condition else query).to_arrow()

        return self.store.read(name, read, None)

    def count(self, name: str, condition: str | None = None) -> int:
        """How many rows of this namespace table `name` has."""
        where = self.where(condition or "")
        return self.store.read(name, lambda table: table.count_rows(where), 0)

    def ids_in(self, name: str, ids: Sequence[str] | None = None) -> set[str]:
        """Which of `ids` (None: which at all) table `name` has rows of, in this namespace."""
        conditions = [self.where()] if ids is None else [self.where(any_of("id", part)) for part in in_parts(ids)]
        tables = [self.read_columns(name, condition, ["id"]) for condition in conditions]
        return {id for table in tables if table is not None for id in table["id"].to_pylist()}

    def upsert(self, name: str, rows: pa.Table) -> None:
        """Adds rows by id in one commit, in place of those that are there. The caller holds the lock."""
        if not rows.num_rows:
            return
        if self.ids_in(name, rows["id"].to_pylist()):
            self.store.mark_dirty(name)
            self.store.commit(name, lambda table: table.merge(rows), rows.num_rows)
        else:
            self.store.commit(name, lambda table: table.add(rows), rows.num_rows)

    def delete(self, name: str, condition: str) -> int:
        """Deletes rows that meet `condition`; returns how many. Makes no version where there are none."""
        count = self.store.read(name, lambda table: table.count_rows(condition), 0)
        if count:
            self.store.mark_dirty(name)
            self.store.commit(name, lambda table: table.delete(condition))
        return count


def in_parts(values: Sequence[str]) -> list[Sequence[str]]:
    """`values` in parts that are short enough for one condition."""
    return [values[first : first + LOOKUP_ROWS] for first in range(0, len(values), LOOKUP_ROWS)]
