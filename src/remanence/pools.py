"""A pool that is what its bank's texts make of it: it reads what is new, and again what followed a forgotten text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from remanence.latent.pool import Pool
from remanence.lm.lm import LM
from remanence.methods.mplus import MPlus
from remanence.types import Chunk

SNAPSHOT_WRITES = 32
"""A pool is kept after so many writes, so that forgetting need not read everything again. It shares all rows but N."""


@dataclass(frozen=True)
class Write:
    """What one write read: chunks (short ones together), and the pool's clock before and after."""

    ids: tuple[str, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Kept:
    """A value: the pool, the writes that made it, and pools after some of them (number of writes, pool)."""

    pool: Pool
    writes: tuple[Write, ...] = ()
    snapshots: tuple[tuple[int, Pool], ...] = ()

    def ids_at(self, clock: int) -> tuple[str, ...]:
        """The chunks whose write made the row that was born at `clock`; none for rows of the first pool."""
        return next((write.ids for write in self.writes if write.begin < clock <= write.end), ())


def groups(lm: LM, chunks: Sequence[Chunk], least: int, most: int) -> list[list[Chunk]]:
    """Chunks as they are written: one shorter than `least` tokens together with the next of its source, if it fits.

    The last of a source joins the one before it; a text that is short by itself is written as it is.
    """
    found: list[list[Chunk]] = []
    sizes: list[int] = []
    for chunk in chunks:
        size = lm.count_tokens(chunk.text)
        joins = bool(found) and found[-1][0].source == chunk.source and sizes[-1] + size <= most
        if joins and min(size, sizes[-1]) < least and chunk.created == found[-1][0].created:
            found[-1].append(chunk)
            sizes[-1] += size
        else:
            found.append([chunk])
            sizes.append(size)
    return found


def in_order(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The order in which a pool reads: that of their coming, then of their place in a text."""
    return sorted(chunks, key=lambda chunk: (chunk.created, chunk.source, chunk.start, chunk.id))


def follow(
    lm: LM, method: MPlus, kept: Kept, chunks: Sequence[Chunk], on_progress: Callable[[int], None] | None = None
) -> Kept:
    """`kept` as if it had only ever read `chunks`: exactly, since writes before the first difference stay.

    After a text was forgotten: the pool before its write, and everything after it read again (M+ has no other exact
    way). `on_progress` is called with the number of chunks of each write.
    """
    wanted = groups(lm, in_order(chunks), method.config.min_chunk_tokens, method.config.chunk_tokens)
    pairs = zip(kept.writes, wanted, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0].ids == tuple(c.id for c in pair[1]), pairs))
    kept = _before(kept, same)
    for group in wanted[len(kept.writes) :]:
        ids = [token for chunk in group for token in lm.encode(chunk.text)]
        pool = method.add(lm, kept.pool, ids)
        write = Write(tuple(chunk.id for chunk in group), kept.pool.clock, pool.clock)
        kept = replace(kept, pool=pool, writes=(*kept.writes, write))
        if len(kept.writes) % SNAPSHOT_WRITES == 0:
            kept = replace(kept, snapshots=(*kept.snapshots, (len(kept.writes), pool)))
        if on_progress:
            on_progress(len(group))
    return kept


def first(method: MPlus, lm: LM, seed: int = 0) -> Kept:
    """Before the first write."""
    pool = method.fresh(lm, seed)
    return Kept(pool, (), ((0, pool),))


def _before(kept: Kept, num_writes: int) -> Kept:
    """`kept` after its first writes, no more than `num_writes`: where a snapshot was made, or all of them."""
    if num_writes == len(kept.writes):
        return kept
    number, pool = next((n, pool) for n, pool in reversed(kept.snapshots) if n <= num_writes)
    return Kept(pool, kept.writes[:number], tuple(entry for entry in kept.snapshots if entry[0] <= number))
