"""BM25 and cosine over the chunks that may be found: this namespace's, neither expired nor superseded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from remanence.bank.rows import READ, quote, rows_from_table
from remanence.bank.store import CHUNKS_TABLE, Table
from remanence.bank.tensors import check_dim, vectors_table
from remanence.bank.texts import Scope
from remanence.errors import InputError
from remanence.types import Chunk

Scored = list[tuple[str, float]]
NUM_PROBES = 16
GROWTH, MAX_RETRIES = 4, 3
MAX_QUERY_CHARS = 8_192
MAX_CACHED_CHUNKS = 4_096


@dataclass(frozen=True)
class Sight:
    """Who is seen in a version of the chunks: `limits` are (expires, hidden_until) of the few that have one."""

    version: int
    others: bool
    limits: dict[str, tuple[float | None, float | None]]

    def visible(self, id: str, now: float) -> bool:
        expires, until = self.limits.get(id, (None, None))
        return (expires is None or expires > now) and (until is None or until <= now)

    def expired(self, id: str, now: float) -> bool:
        expires, _ = self.limits.get(id, (None, None))
        return expires is not None and expires <= now

    def num_invisible(self, now: float) -> int:
        return sum(not self.visible(id, now) for id in self.limits)


class Search:
    """Searches of one namespace; keeps what it learned until another version of the table comes."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.store = scope, scope.store
        self._sight = Sight(-1, False, {})
        self._chunks: tuple[int, dict[str, Chunk]] = (-1, {})

    def sight(self) -> Sight:
        version = self.store.version(CHUNKS_TABLE)
        if version != self._sight.version:
            self._sight = self._look()
        return self._sight

    def _look(self) -> Sight:
        mine = self.scope.where("expires IS NOT NULL OR hidden_until IS NOT NULL")
        others = f"namespace != {quote(self.scope.namespace)}"

        async def look(table: Table) -> tuple[int, pa.Table, pa.Table]:
            limits = await table.query().where(mine).select(["id", "expires", "hidden_until"]).to_arrow()
            foreign = await table.query().where(others).select(["id"]).limit(1).to_arrow()
            return await table.version(), limits, foreign

        version, rows, foreign = self.store.read(CHUNKS_TABLE, look, (0, None, None))
        limits = {row["id"]: (row["expires"], row["hidden_until"]) for row in rows.to_pylist()} if rows else {}
        return Sight(version, foreign is not None and foreign.num_rows > 0, limits)

    def text(self, query: str, limit: int) -> Scored:
        """See `Bank.search_text`."""
        from lancedb.query import MatchQuery

        match = MatchQuery(query[:MAX_QUERY_CHARS], "text")  # pyright: ignore[reportCallIssue] has defaults

        def search(table: Table, count: int, exact: bool) -> Any:
            return table.query().nearest_to_text(match).select([*READ, "_score"]).limit(count)

        def scored(found: pa.Table) -> Scored:
            self.remember([row.chunk for row in rows_from_table(found)])
            return list(zip(found["id"].to_pylist(), found["_score"].to_pylist(), strict=True))

        return self._grow(CHUNKS_TABLE, search, scored, limit) if query.strip() else []

    def vector(self, vector_E: np.ndarray, embedder: str, limit: int) -> Scored:
        """See `Bank.search_vector`."""
        vector_E = np.asarray(vector_E, dtype=np.float32).reshape(-1)
        name = vectors_table(embedder)
        check_dim(self.scope, name, embedder, len(vector_E))
        if not np.isfinite(vector_E).all() or not vector_E.any():
            raise InputError("the vector to search for is zero, NaN or infinite", "check the embedder")

        def search(table: Table, count: int, exact: bool) -> Any:
            query = table.query().nearest_to(vector_E).column("vector").distance_type("cosine")
            query = query.bypass_vector_index() if exact else query.nprobes(NUM_PROBES)
            return query.select(["id", "_distance"]).limit(count)

        def scored(found: pa.Table) -> Scored:
            return [(row["id"], 1.0 - row["_distance"]) for row in found.to_pylist()]

        return self._grow(name, search, scored, limit)

    def _ask(
        self, name: str, search: Callable[[Table, int, bool], Any], count: int, exact: bool, alone: bool
    ) -> tuple[int, pa.Table] | None:
        """The version of the chunks, and what a search finds; `alone`: the bank has no other namespace to keep out.

        The chunks are opened last: a row of another table that is seen has its chunk in the version that is given.
        """
        mine = None if alone else self.scope.where()

        async def ask(table: Table, chunks: Table) -> tuple[int, pa.Table]:
            query = search(table, count, exact)
            found = await (query.where(mine) if mine else query).to_arrow()
            return await chunks.version(), found

        return self.store.read_both(name, CHUNKS_TABLE, ask, None)

    def _grow(
        self,
        name: str,
        search: Callable[[Table, int, bool], Any],
        scored: Callable[[pa.Table], Scored],
        limit: int,
    ) -> Scored:
        """Asks for more until `limit` visible chunks are found or there are no more: the same as a filter
        before the search, without its cost where nearly everything is visible. An index that runs out
        first is passed by."""
        now, exact = self.scope.clock(), name == CHUNKS_TABLE
        count = limit + min(self._sight.num_invisible(now), limit)
        retries = MAX_RETRIES
        while limit > 0:
            alone = not self._sight.others and retries > 0  # the last look may be out of date already
            asked = self._ask(name, search, count, exact, alone)
            if asked is None:
                break
            version, found = asked
            if version != self._sight.version and retries:
                self._sight, retries = self._look(), retries - 1
                continue
            hits = [(id, score) for id, score in scored(found) if math.isfinite(score) and self._sight.visible(id, now)]
            if len(hits) >= limit or (exact and found.num_rows < count):
                return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:limit]
            count, exact = (count * GROWTH, exact) if found.num_rows == count else (count, True)
        return []

    # --- chunks that were read, in RAM --------------------------------------------------------

    def remember(self, chunks: list[Chunk]) -> None:
        version, held = self._chunks
        if version != self._sight.version or len(held) > MAX_CACHED_CHUNKS:
            held = {}
        held.update({chunk.id: chunk for chunk in chunks})
        self._chunks = (self._sight.version, held)

    def remembered(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """Those of `ids` that were read before, in the newest version, and have not expired since."""
        sight, now = self.sight(), self.scope.clock()
        version, held = self._chunks
        if version != sight.version:
            return {}
        return {id: held[id] for id in ids if id in held and not sight.expired(id, now)}
