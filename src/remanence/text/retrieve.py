"""From a question to the few chunks that are about it, or to none: BM25, dense, and both by rank fusion."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Literal, Protocol, TypeVar, get_args

import numpy as np

from remanence.errors import InputError, UnknownChunk
from remanence.text.embed import Embedder
from remanence.text.words import content_words, coverage
from remanence.types import Chunk, Hit

Kind = Literal["hybrid", "lexical", "dense"]
One = TypeVar("One")
Other = TypeVar("Other")
RANK_CONSTANT = 60
"""k of reciprocal rank fusion (Cormack et al. 2009): a chunk's worth is the sum of 1 / (k + rank)."""
POOL_PER_HIT = 4
"""Each search is asked for so many candidates per wanted hit, and for at least `MIN_POOL`."""
MIN_POOL = 20
EMBED_BATCH = 64
MIN_COSINE = 0.6


class Searchable(Protocol):
    """What a retriever needs of a bank."""

    def search_text(self, query: str, limit: int) -> list[tuple[str, float]]: ...
    def search_vector(self, vector_E: np.ndarray, embedder: str, limit: int) -> list[tuple[str, float]]: ...
    def texts(self, ids: Sequence[str]) -> dict[str, str]: ...
    def get(self, ids: Sequence[str]) -> list[Chunk]: ...
    def missing_vectors(self, embedder: str) -> list[str]: ...
    def put_vectors(self, embedder: str, ids: Sequence[str], vector_NE: np.ndarray) -> None: ...


@dataclass(frozen=True)
class Threshold:
    """When a chunk is recalled: by `coverage` or `cosine`, which mean the same in any bank, and by `margin`.

    `coverage`: share of the question's content words that occur in a chunk that BM25 found; names and numbers
    count twice.
    `cosine`: similarity of question and chunk; None: the embedder's own `min_cosine`, or 0.6 if it has none,
    since what is far apart depends on the embedder.
    `margin`: share of the best hit's score. What is far less like the question than the best hit rarely helps, and
    small models take it for the answer. 0.7 was chosen on training data (docs/notebook.md); 0: no margin.
    """

    coverage: float = 0.5
    cosine: float | None = None
    margin: float = 0.7


class Retriever:
    """Search over one bank; without an embedder, hybrid is BM25 alone and `describe` says so."""

    def __init__(
        self,
        bank: Searchable,
        embedder: Embedder | None = None,
        kind: Kind = "hybrid",
        threshold: Threshold | None = None,
    ) -> None:
        if kind not in get_args(Kind):
            raise InputError(f"retrieval is {kind!r}", f"use one of {', '.join(get_args(Kind))}")
        if kind == "dense" and embedder is None:
            raise InputError("retrieval is 'dense', but this model has no embedder", "use 'lexical' or 'hybrid'")
        self.bank, self.kind = bank, kind
        self.embedder = None if kind == "lexical" else embedder
        self.threshold = threshold or Threshold()
        own = getattr(embedder, "min_cosine", MIN_COSINE)
        self.min_cosine = own if self.threshold.cosine is None else self.threshold.cosine

    def describe(self) -> str:
        """One line for people: how this retriever searches, and when it stays silent."""
        limit = self.threshold
        covers, how = f"share of the question's words >= {limit.coverage:g}", "BM25 and dense, fused by rank"
        near = "" if self.embedder is None else f"cosine by {self.embedder.name} >= {self.min_cosine:g}"
        if self.embedder is None:
            how = "BM25 alone"
            how += (
                " (no dense search: the model has no embedder, or the bank no vectors)" if self.kind == "hybrid" else ""
            )
        elif self.kind == "dense":
            how, covers = "dense", ""
        either = " or the ".join(filter(None, (covers, near)))
        return f"{how}; recalls where the {either}, and the score >= {limit.margin:g} of the best"

    def search(self, query: str, limit: int = 5, without: Collection[str] = ()) -> list[Hit]:
        """At most `limit` hits, best first; [] where nothing in the bank is about the query.

        BM25 proposes, coverage orders what it proposed; the dense search orders by cosine; where both search,
        their ranks are fused. `score` is the larger of coverage and cosine, as far as each found it. `without`: ids
        that are passed over, as if they were not there.
        """
        if limit < 1 or not query.strip():
            return []
        covered, cosines = self._candidates(query, max((limit + len(without)) * POOL_PER_HIT, MIN_POOL))
        lexical = sorted(covered, key=lambda id: -covered[id])
        fused = fuse({"lexical": lexical, "dense": [*cosines]})
        ranked = [each for each in fused if each[0] not in without and self._near(each[0], covered, cosines)]
        score = {id: min(1.0, max(covered.get(id, 0.0), cosines.get(id, 0.0))) for id, _ in ranked}
        enough = self.threshold.margin * max(score.values(), default=0.0)
        ranked = [each for each in ranked if score[each[0]] >= enough]
        hits: list[Hit] = []
        while ranked and len(hits) < limit:
            part, ranked = ranked[: limit - len(hits)], ranked[limit - len(hits) :]
            chunks = self._chunks([id for id, _ in part])
            hits += [Hit(chunks[id], score[id], found_by) for id, found_by in part if id in chunks]
        return hits

    def _near(self, id: str, covered: Mapping[str, float], cosines: Mapping[str, float]) -> bool:
        by_words = id in covered and covered[id] >= self.threshold.coverage
        return by_words or (id in cosines and cosines[id] >= self.min_cosine)

    def _candidates(self, query: str, pool: int) -> tuple[dict[str, float], dict[str, float]]:
        """Coverage of what BM25 proposes, and cosines of the nearest chunks, best first; both searches at once."""
        if self.kind == "dense" or self.embedder is None:
            return {} if self.kind == "dense" else self._lexical(query, pool), self._dense(query, pool)
        cosines, covered = at_once(lambda: self._dense(query, pool), lambda: self._lexical(query, pool))
        return covered, cosines

    def _lexical(self, query: str, pool: int) -> dict[str, float]:
        """Coverage of what BM25 proposes, in BM25's order."""
        proposed = [id for id, _ in self.bank.search_text(query, pool)]
        texts, wanted = self.bank.texts(proposed), content_words(query)
        return {id: coverage(wanted, texts[id]) for id in proposed if id in texts}

    def _chunks(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """Without those that were forgotten, or expired, since they were found."""
        try:
            return {chunk.id: chunk for chunk in self.bank.get(ids)} if ids else {}
        except UnknownChunk:
            pass
        found: dict[str, Chunk] = {}
        for id in ids:
            with suppress(UnknownChunk):
                found |= {chunk.id: chunk for chunk in self.bank.get([id])}
        return found

    def _dense(self, query: str, pool: int) -> dict[str, float]:
        """Cosines of the nearest chunks, best first."""
        if self.embedder is None:
            return {}
        vector_E = self.embedder.embed([query])[0]
        return dict(self.bank.search_vector(vector_E, self.embedder.name, pool))

    def update(self) -> int:
        """Embeds the chunks that have no vector of this embedder yet; returns how many."""
        if self.embedder is None:
            return 0
        missing = self.bank.missing_vectors(self.embedder.name)
        for first in range(0, len(missing), EMBED_BATCH):
            ids = missing[first : first + EMBED_BATCH]
            texts = [chunk.text for chunk in self.bank.get(ids)]
            self.bank.put_vectors(self.embedder.name, ids, self.embedder.embed(texts))
        return len(missing)


def at_once(here: Callable[[], One], there: Callable[[], Other]) -> tuple[One, Other]:
    """What both give; `there` runs in a thread of its own, and has ended when this returns or raises.

    No pool: one that lasts hangs in a process that was forked after its first use.
    """
    waiting: Future[Other] = Future()

    def work() -> None:
        try:
            waiting.set_result(there())
        except BaseException as error:  # told where the result is asked for
            waiting.set_exception(error)

    thread = Thread(target=work, name="remanence-search", daemon=True)
    thread.start()
    try:
        found = here()
    finally:
        thread.join()
    return found, waiting.result()


def fuse(rankings: Mapping[str, Sequence[str]]) -> list[tuple[str, dict[str, int]]]:
    """Ids by the sum of 1 / (60 + rank) over all rankings, each with its ranks (from 1) by ranking.

    Ties keep the order of the first ranking.
    """
    ranks: dict[str, dict[str, int]] = {}
    for name, ids in rankings.items():
        for rank, id in enumerate(ids, start=1):
            ranks.setdefault(id, {})[name] = rank
    return sorted(ranks.items(), key=lambda item: -sum(1 / (RANK_CONSTANT + rank) for rank in item[1].values()))
