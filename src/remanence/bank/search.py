"""BM25 and cosine over the chunks that may be found: this namespace's, neither expired nor superseded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from remanence.bank.draft import chunk_id
from remanence.bank.resident import ADDRESS, Resident, Rows
from remanence.bank.rows import corrupted, quote
from remanence.bank.store import CHUNKS_TABLE, Pin, Table
from remanence.bank.tensors import check_dim, vectors_table
from remanence.bank.texts import Scope
from remanence.errors import InputError
from remanence.types import Chunk

Scored = list[tuple[str, float]]
Found = list[tuple[dict[str, Any], float]]
NUM_PROBES = 16
GROWTH, MAX_RETRIES = 4, 3
MAX_QUERY_CHARS = 8_192
MAX_RECENT = 4_096
DISTANCE = "_distance"


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


@dataclass(frozen=True)
class Query:
    """A kind of search: of table `name`, what it reads of a hit, and the column that Lance puts its score in."""

    name: str
    columns: list[str]
    score: str
    build: Callable[[Table, int, bool], Any]


class Recent:
    """What was read of one version of the chunks, by id; the two are changed together, for other threads' sake."""

    def __init__(self) -> None:
        self._state: tuple[int, dict[str, Any]] = (-1, {})

    def put(self, version: int, found: dict[str, Any]) -> None:
        seen, held = self._state
        if version == seen and len(held) <= MAX_RECENT:
            held.update(found)
        else:
            self._state = (version, dict(found))

    def get(self, version: int, ids: Iterable[str]) -> dict[str, Any]:
        seen, held = self._state
        return {id: held[id] for id in ids if id in held} if version == seen else {}


class Search:
    """Searches of one namespace; keeps what it learned until another version of the table comes."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.store = scope, scope.store
        self.clear()

    def clear(self) -> None:
        """Drops all that was read."""
        self._sight = Sight(-1, False, {})
        self._chunks, self._texts = Recent(), Recent()
        self._addresses: dict[str, Resident] = {CHUNKS_TABLE: self.scope.resident}

    def row_bytes(self) -> int:
        return sum(each.num_bytes for each in self._addresses.values())

    def sight(self) -> Sight:
        sight = self._sight
        if sight.version != self.store.version(CHUNKS_TABLE):
            sight = self._sight = self._look()
        return sight

    def _look(self) -> Sight:
        mine = self.scope.where("expires IS NOT NULL OR hidden_until IS NOT NULL")
        others = f"namespace != {quote(self.scope.namespace)}"

        async def look(pin: Pin) -> tuple[int, pa.Table, pa.Table]:
            limits = await pin.table.query().where(mine).select(["id", "expires", "hidden_until"]).to_arrow()
            foreign = await pin.table.query().where(others).select(["id"]).limit(1).to_arrow()
            return pin.version, limits, foreign

        version, rows, foreign = self.store.read_at((CHUNKS_TABLE,), look, (0, None, None))
        limits = {row["id"]: (row["expires"], row["hidden_until"]) for row in rows.to_pylist()} if rows else {}
        return Sight(version, foreign is not None and foreign.num_rows > 0, limits)

    def text(self, query: str, limit: int) -> Scored:
        """See `Bank.search_text`."""
        from lancedb.query import MatchQuery

        match = MatchQuery(query[:MAX_QUERY_CHARS], "text")  # pyright: ignore[reportCallIssue] has defaults

        def build(table: Table, count: int, exact: bool) -> Any:
            return table.query().nearest_to_text(match)

        if not query.strip():
            return []
        version, found = self._grow(Query(CHUNKS_TABLE, ["id", "text"], "_score", build), limit)
        texts = {row["id"]: row["text"] for row, _ in found}
        for id, text in texts.items():  # no record is read: the id, which is the hash of the text, vouches for it
            if chunk_id(self.scope.namespace, text) != id:
                raise corrupted(id)
        self._texts.put(version, texts)
        return [(row["id"], score) for row, score in found]

    def vector(self, vector_E: np.ndarray, embedder: str, limit: int) -> Scored:
        """See `Bank.search_vector`."""
        vector_E = np.asarray(vector_E, dtype=np.float32).reshape(-1)
        name = vectors_table(embedder)
        check_dim(self.scope, name, embedder, len(vector_E))
        if not np.isfinite(vector_E).all() or not vector_E.any():
            raise InputError("the vector to search for is zero, NaN or infinite", "check the embedder")

        def build(table: Table, count: int, exact: bool) -> Any:
            query = table.query().nearest_to(vector_E).column("vector").distance_type("cosine")
            return query.bypass_vector_index() if exact else query.nprobes(NUM_PROBES)

        _, found = self._grow(Query(name, ["id"], DISTANCE, build), limit)
        return [(row["id"], score) for row, score in found]

    def _ask(self, query: Query, count: int, exact: bool, alone: bool, rows: Rows | None) -> tuple[int, Found] | None:
        """The version of the chunks, and what a search finds; `alone`: the bank has no other namespace to keep out.

        Of `rows` of the version that is searched, Lance is asked for no more than the address.
        """
        mine = None if alone else self.scope.where()

        async def ask(chunks: Pin, *others: Pin) -> tuple[int, Found]:
            pin = others[0] if others else chunks
            held = rows if rows is not None and rows.edition == pin.edition else None
            asked = query.build(pin.table, count, exact).select([*([ADDRESS] if held else query.columns), query.score])
            found = await (asked.where(mine) if mine else asked).limit(count).to_arrow()
            read = held.read(held.by_addresses(found[ADDRESS].to_pylist()), query.columns) if held else None
            rates = (1.0 - each if query.score == DISTANCE else each for each in found[query.score].to_pylist())
            return chunks.version, list(zip(found.to_pylist() if read is None else read, rates, strict=True))

        return self.store.read_at(tuple(dict.fromkeys((CHUNKS_TABLE, query.name))), ask, None)

    def _grow(self, query: Query, limit: int) -> tuple[int, Found]:
        """The version of the chunks, and hits: asks for more until `limit` visible chunks are found or there are no
        more. The same as a filter before the search, without its cost where nearly everything is visible. An index
        that runs out first is passed by."""
        now, exact, sight = self.scope.clock(), query.name == CHUNKS_TABLE, self.sight()
        if query.name not in self._addresses:
            self._addresses[query.name] = Resident(self.store, query.name, ["id"])
        rows = self._addresses[query.name].rows()
        count, retries = limit + min(sight.num_invisible(now), limit), MAX_RETRIES
        while limit > 0:
            alone = not sight.others and retries > 0  # the last look may be out of date already
            asked = self._ask(query, count, exact, alone, rows if retries else None)
            if asked is None:
                break
            version, found = asked
            if version != sight.version and retries:
                sight, retries = self._look(), retries - 1
                self._sight = sight
                continue
            hits = [(row, score) for row, score in found if math.isfinite(score) and sight.visible(row["id"], now)]
            if len(hits) >= limit or (exact and len(found) < count):
                return version, sorted(hits, key=lambda hit: (-hit[1], hit[0]["id"]))[:limit]
            count, exact = (count * GROWTH, exact) if len(found) == count else (count, True)
        return sight.version, []

    # --- what was read, in RAM ----------------------------------------------------------------

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        """Of those of `ids` that a text search of the newest version found, and that have not expired since."""
        return self._unexpired(self._texts, ids)

    def remember(self, version: int, chunks: Iterable[Chunk]) -> None:
        """What was read after `version` was seen."""
        self._chunks.put(version, {chunk.id: chunk for chunk in chunks})

    def remembered(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """Those of `ids` that were read before, in the newest version, and have not expired since."""
        return self._unexpired(self._chunks, ids)

    def _unexpired(self, recent: Recent, ids: Sequence[str]) -> dict[str, Any]:
        sight, now = self.sight(), self.scope.clock()
        return {id: held for id, held in recent.get(sight.version, ids).items() if not sight.expired(id, now)}
