"""BM25 and cosine over the chunks that may be found: this namespace's, neither expired nor superseded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from remanence.bank.context import BankContext
from remanence.bank.lance import ADDRESS, Table
from remanence.bank.lance import Query as LanceQuery
from remanence.bank.memories import check_dim, vectors_table
from remanence.bank.new_chunk import chunk_id
from remanence.bank.rows import corrupted, quote
from remanence.bank.store import CHUNKS_TABLE, PinnedTable
from remanence.bank.tiers import LoadedRows, TableRows
from remanence.errors import InputError
from remanence.types import Chunk

Scored = list[tuple[str, float]]
Matches = list[tuple[dict[str, Any], float]]
NUM_PROBES = 16
GROWTH, MAX_RETRIES = 4, 3
MAX_QUERY_CHARS = 8_192
MAX_RECENT = 4_096
DISTANCE = "_distance"


@dataclass(frozen=True)
class Visibility:
    """Which chunks are visible in a version of the table. `limits`: (expires, hidden_until) of those that have one.

    `has_others`: the table has chunks of other namespaces too.
    """

    version: int
    has_others: bool
    limits: dict[str, tuple[float | None, float | None]]

    def is_visible(self, id: str, now: float) -> bool:
        expires, until = self.limits.get(id, (None, None))
        return (expires is None or expires > now) and (until is None or until <= now)

    def is_expired(self, id: str, now: float) -> bool:
        expires, _ = self.limits.get(id, (None, None))
        return expires is not None and expires <= now

    def num_invisible(self, now: float) -> int:
        return sum(not self.is_visible(id, now) for id in self.limits)


@dataclass(frozen=True)
class SearchKind:
    """A search of table `name`: what it reads of a hit, and the column that Lance puts its score in."""

    name: str
    columns: list[str]
    score: str
    build: Callable[[Table, bool], LanceQuery]


class RecentRows:
    """What was read of one version of the chunks, by id; the two are changed together, for other threads' sake."""

    def __init__(self) -> None:
        self._state: tuple[int, dict[str, Any]] = (-1, {})

    def put(self, version: int, rows: dict[str, Any]) -> None:
        known_version, known = self._state
        if version == known_version and len(known) <= MAX_RECENT:
            known.update(rows)
        else:
            self._state = (version, dict(rows))

    def get(self, version: int, ids: Iterable[str]) -> dict[str, Any]:
        known_version, known = self._state
        return {id: known[id] for id in ids if id in known} if version == known_version else {}


class Search:
    """Searches of one namespace; keeps what it learned until another version of the table comes."""

    def __init__(self, context: BankContext) -> None:
        self.context, self.store = context, context.store
        self.clear()

    def clear(self) -> None:
        """Drops all that was read."""
        self._visibility = Visibility(-1, False, {})
        self._chunks, self._texts = RecentRows(), RecentRows()
        self._rows: dict[str, TableRows] = {CHUNKS_TABLE: self.context.chunk_rows}

    @property
    def row_bytes(self) -> int:
        return sum(each.num_bytes for each in self._rows.values())

    def visibility(self) -> Visibility:
        """Of the newest version."""
        visibility = self._visibility
        if visibility.version != self.store.version(CHUNKS_TABLE):
            visibility = self._visibility = self._read_visibility()
        return visibility

    def _read_visibility(self) -> Visibility:
        mine = self.context.where("expires IS NOT NULL OR hidden_until IS NOT NULL")
        others = f"namespace != {quote(self.context.namespace)}"

        async def read(pinned: PinnedTable) -> tuple[int, pa.Table, pa.Table]:
            limits = await pinned.table.query().where(mine).select(["id", "expires", "hidden_until"]).to_arrow()
            foreign = await pinned.table.query().where(others).select(["id"]).limit(1).to_arrow()
            return pinned.version, limits, foreign

        version, rows, foreign = self.store.read_at((CHUNKS_TABLE,), read, (0, None, None))
        limits = {row["id"]: (row["expires"], row["hidden_until"]) for row in rows.to_pylist()} if rows else {}
        return Visibility(version, foreign is not None and foreign.num_rows > 0, limits)

    def text(self, query: str, limit: int) -> Scored:
        """See `Bank.search_text`."""
        words = query[:MAX_QUERY_CHARS]

        def build(table: Table, exact: bool) -> LanceQuery:
            return table.query().nearest_to_text(words, "text")

        if not query.strip():
            return []
        version, matches = self._grow(SearchKind(CHUNKS_TABLE, ["id", "text"], "_score", build), limit)
        texts = {row["id"]: row["text"] for row, _ in matches}
        for id, text in texts.items():  # no record is read: the id, which is the hash of the text, vouches for it
            if chunk_id(self.context.namespace, text) != id:
                raise corrupted(id)
        self._texts.put(version, texts)
        return [(row["id"], score) for row, score in matches]

    def vector(self, vector_E: np.ndarray, embedder: str, limit: int) -> Scored:
        """See `Bank.search_vector`."""
        vector_E = np.asarray(vector_E, dtype=np.float32).reshape(-1)
        name = vectors_table(embedder)
        check_dim(self.context, embedder, len(vector_E))
        if not np.isfinite(vector_E).all() or not vector_E.any():
            raise InputError("the vector to search for is zero, NaN or infinite", "check the embedder")

        def build(table: Table, exact: bool) -> LanceQuery:
            return table.query().nearest_to(vector_E, "vector", None if exact else NUM_PROBES)

        _, matches = self._grow(SearchKind(name, ["id"], DISTANCE, build), limit)
        return [(row["id"], score) for row, score in matches]

    def _search(
        self, kind: SearchKind, count: int, exact: bool, alone: bool, rows: LoadedRows | None
    ) -> tuple[int, Matches] | None:
        """The version of the chunks, and matches; `alone`: the bank has no other namespace to keep out.

        Where `rows` are of the version that is searched, Lance is asked for no more than addresses.
        """
        mine = None if alone else self.context.where()

        async def search(chunks: PinnedTable, *others: PinnedTable) -> tuple[int, Matches]:
            pinned = others[0] if others else chunks
            loaded = rows if rows is not None and rows.version_key == pinned.version_key else None
            query = kind.build(pinned.table, exact).select([*([ADDRESS] if loaded else kind.columns), kind.score])
            table = await (query.where(mine) if mine else query).limit(count).to_arrow()
            if loaded:
                columns = loaded.read(loaded.by_addresses(table[ADDRESS].to_pylist()), kind.columns)
            else:
                columns = table.to_pylist()
            scores = (1.0 - each if kind.score == DISTANCE else each for each in table[kind.score].to_pylist())
            return chunks.version, list(zip(columns, scores, strict=True))

        return self.store.read_at(tuple(dict.fromkeys((CHUNKS_TABLE, kind.name))), search, None)

    def _grow(self, kind: SearchKind, limit: int) -> tuple[int, Matches]:
        """The version of the chunks, and matches: searches for more until `limit` of them are visible or there are no
        more. The same as a filter before the search, without its cost where nearly everything is visible. An index
        that runs out first is passed by."""
        now, exact, visibility = self.context.clock(), kind.name == CHUNKS_TABLE, self.visibility()
        if kind.name not in self._rows:
            self._rows[kind.name] = TableRows(self.store, kind.name, ["id"])
        rows = self._rows[kind.name].current()
        count, retries = limit + min(visibility.num_invisible(now), limit), MAX_RETRIES
        while limit > 0:
            alone = not visibility.has_others and retries > 0  # what was read of others may be out of date already
            result = self._search(kind, count, exact, alone, rows if retries else None)
            if result is None:
                break
            version, matches = result
            if version != visibility.version and retries:
                visibility, retries = self._read_visibility(), retries - 1
                self._visibility = visibility
                continue
            hits = [
                (row, score) for row, score in matches if math.isfinite(score) and visibility.is_visible(row["id"], now)
            ]
            if len(hits) >= limit or (exact and len(matches) < count):
                return version, sorted(hits, key=lambda hit: (-hit[1], hit[0]["id"]))[:limit]
            count, exact = (count * GROWTH, exact) if len(matches) == count else (count, True)
        return visibility.version, []

    # --- what was read, in RAM ----------------------------------------------------------------

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        """Of those of `ids` that a text search of the newest version found, and that have not expired since."""
        return self._unexpired(self._texts, ids)

    def remember(self, version: int, chunks: Iterable[Chunk]) -> None:
        """Holds what was read while `version` was the newest, or later."""
        self._chunks.put(version, {chunk.id: chunk for chunk in chunks})

    def remembered(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """Those of `ids` that were read before, in the newest version, and have not expired since."""
        return self._unexpired(self._chunks, ids)

    def _unexpired(self, recent: RecentRows, ids: Sequence[str]) -> dict[str, Any]:
        visibility, now = self.visibility(), self.context.clock()
        rows = recent.get(visibility.version, ids)
        return {id: row for id, row in rows.items() if not visibility.is_expired(id, now)}
