"""Chunks in the order they were added: for lists, counts, exports, and what is still missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from remanence.bank.rows import READ, any_of, quote, rows_from_table
from remanence.bank.store import CHUNKS_TABLE
from remanence.bank.tensors import held_ids, vectors_table
from remanence.bank.texts import LOOKUP_ROWS, Scope
from remanence.types import Chunk


def live_condition(scope: Scope) -> str:
    return f"(expires IS NULL OR expires > {scope.clock()!r})"


def visible_condition(scope: Scope) -> str:
    now = scope.clock()
    return f"{live_condition(scope)} AND (hidden_until IS NULL OR hidden_until <= {now!r})"


def count(scope: Scope, condition: str | None = None) -> int:
    where = scope.where(condition or visible_condition(scope))
    return scope.store.read(CHUNKS_TABLE, lambda table: table.count_rows(where), 0)


def live_ids(scope: Scope, condition: str | None = None) -> list[str]:
    """Oldest first; chunks of one `add` in the order of their ids. Reads two columns of all rows."""
    where = scope.where(condition or live_condition(scope))
    columns = ["created", "id"]
    table: pa.Table | None = scope.store.read(
        CHUNKS_TABLE, lambda table: table.query().where(where).select(columns).to_arrow(), None
    )
    if table is None:
        return []
    return table.sort_by([("created", "ascending"), ("id", "ascending")])["id"].to_pylist()


def list_chunks(
    scope: Scope, limit: int | None, offset: int, source: str | None, include_superseded: bool
) -> list[Chunk]:
    condition = live_condition(scope) if include_superseded else visible_condition(scope)
    if source is not None:
        condition += f" AND source = {quote(source)}"
    ids = live_ids(scope, condition)[max(0, offset) :]
    return [chunk for part in iterate(scope, ids[:limit] if limit is not None else ids) for chunk in part]


def iterate(scope: Scope, ids: Sequence[str]) -> Iterator[list[Chunk]]:
    """The chunks of `ids` in their order, up to 1,000 at a time; what went in the meantime is left out."""
    for first in range(0, len(ids), LOOKUP_ROWS):
        part = ids[first : first + LOOKUP_ROWS]
        where = scope.where(any_of("id", part))
        table = scope.store.read(
            CHUNKS_TABLE, lambda table, where=where: table.query().where(where).select(READ).to_arrow(), None
        )
        rows = {row.chunk.id: row.chunk for row in rows_from_table(table)} if table is not None else {}
        yield [rows[id] for id in part if id in rows]


def missing_vectors(scope: Scope, embedder: str, ids: Sequence[str] | None = None) -> list[str]:
    """See `Bank.missing_vectors`."""
    name = vectors_table(embedder)
    if ids is not None:
        present = held_ids(scope, name, ids)
        return [id for id in dict.fromkeys(ids) if id not in present]
    held = scope.store.read(name, lambda table: table.count_rows(scope.where()), 0)
    ids = live_ids(scope)
    if not held:
        return ids
    present = held_ids(scope, name)
    return [id for id in ids if id not in present]
