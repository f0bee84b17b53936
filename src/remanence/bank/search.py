"""BM25 and cosine over the chunks that may be found: this namespace's, neither expired nor superseded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from remanence.bank.draft import chunk_id
from remanence.bank.resident import ADDRESS, Resident, Rows
from remanence.bank.rows import corrupted, quote
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


def _told(found: pa.Table, rows: Rows | None, columns: list[str]) -> list[dict[str, Any]]:
    """What was found, with `columns`; KeyError where `rows` are of another version."""
    if rows is None:
        return found.select(columns).to_pylist()
    return rows.read(rows.by_addresses(found[ADDRESS].to_pylist()), columns)


class Search:
    """Searches of one namespace; keeps what it learned until another version of the table comes."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.store = scope, scope.store
        self._addresses: dict[str, Resident] = {}
        self._sight = Sight(-1, False, {})
        self._chunks: tuple[int, dict[str, Chunk]] = (-1, {})
        self._texts: tuple[int, dict[str, str]] = (-1, {})

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

        def search(rows: Rows | None, limit: int) -> Scored:
            columns = [*(["id", "text"] if rows is None else [ADDRESS]), "_score"]

            def ask(table: Table, count: int, exact: bool) -> Any:
                return table.query().nearest_to_text(match).select(columns).limit(count)

            def scored(found: pa.Table) -> Scored:
                told = _told(found, rows, ["id", "text"])
                self._remember_texts({row["id"]: row["text"] for row in told})
                return list(zip([row["id"] for row in told], found["_score"].to_pylist(), strict=True))

            return self._grow(CHUNKS_TABLE, ask, scored, limit)

        return self._with_rows(self.scope.resident, search, limit) if query.strip() else []

    def vector(self, vector_E: np.ndarray, embedder: str, limit: int) -> Scored:
        """See `Bank.search_vector`."""
        vector_E = np.asarray(vector_E, dtype=np.float32).reshape(-1)
        name = vectors_table(embedder)
        check_dim(self.scope, name, embedder, len(vector_E))
        if not np.isfinite(vector_E).all() or not vector_E.any():
            raise InputError("the vector to search for is zero, NaN or infinite", "check the embedder")

        def search(rows: Rows | None, limit: int) -> Scored:
            columns = ["id" if rows is None else ADDRESS, "_distance"]

            def ask(table: Table, count: int, exact: bool) -> Any:
                query = table.query().nearest_to(vector_E).column("vector").distance_type("cosine")
                query = query.bypass_vector_index() if exact else query.nprobes(NUM_PROBES)
                return query.select(columns).limit(count)

            def scored(found: pa.Table) -> Scored:
                ids = [row["id"] for row in _told(found, rows, ["id"])]
                return [(id, 1.0 - far) for id, far in zip(ids, found["_distance"].to_pylist(), strict=True)]

            return self._grow(name, ask, scored, limit)

        return self._with_rows(self._addresses.setdefault(name, Resident(self.store, name, ["id"])), search, limit)

    def _with_rows(self, resident: Resident, search: Callable[[Rows | None, int], Scored], limit: int) -> Scored:
        """A search that asks only for addresses of rows in RAM; as without them where others have come since.

        Lance never gives an address to another row: one that is known is that row still.
        """
        rows = resident.rows(self.store.version(resident.name))
        with suppress(KeyError):
            return search(rows, limit)
        return search(None, limit)

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

    def forget(self) -> None:
        """Drops all that was read."""
        self._chunks, self._texts = (-1, {}), (-1, {})
        self.scope.resident.clear()
        self._addresses.clear()

    # --- what was read, in RAM ----------------------------------------------------------------

    def _remember_texts(self, texts: dict[str, str]) -> None:
        """A search reads no records; the id, which is the hash of the text, shows whether the text is intact."""
        for id, text in texts.items():
            if chunk_id(self.scope.namespace, text) != id:
                raise corrupted(id)
        version, held = self._texts
        if version != self._sight.version or len(held) > MAX_CACHED_CHUNKS:
            held = {}
        held.update(texts)
        self._texts = (self._sight.version, held)

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        """Of those of `ids` that a text search of the newest version found, and that have not expired since."""
        sight, now = self.sight(), self.scope.clock()
        version, held = self._texts
        if version != sight.version:
            return {}
        return {id: held[id] for id in ids if id in held and not sight.expired(id, now)}

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
