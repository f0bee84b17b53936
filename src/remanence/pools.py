"""A pool that is what its bank's texts make of it: it reads what is new, and again what followed a forgotten text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from remanence.latent.kept import Kept, Write
from remanence.latent.snapshot import load_kept, save_kept
from remanence.lm.lm import LM
from remanence.methods.mplus import MPlus
from remanence.types import Chunk

if TYPE_CHECKING:
    from remanence.bank import Bank

SNAPSHOT_WRITES = 32
"""A pool is kept after so many writes, so that forgetting need not read everything again. It shares all rows but N."""


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


class Followed:
    """The pool of one namespace of a bank for one model: brought up to the bank's texts whenever it is asked for.

    It is kept in a file beside the bank, which the bank removes when one of its texts is forgotten.
    """

    def __init__(self, lm: LM, method: MPlus, bank: Bank, seed: int) -> None:
        self.lm, self.method, self.bank, self.seed = lm, method, bank, seed
        self._kept: Kept | None = None
        self._on_disk: Kept | None = None

    @property
    def file(self) -> Path | None:
        """None for a bank in RAM."""
        fingerprint = hashlib.sha256(f"{self.method.fingerprint(self.lm)} {self.seed}".encode()).hexdigest()
        return self.bank.pool_file(fingerprint)

    def now(self, without: Collection[str] = (), on_progress: Callable[[int], None] | None = None) -> Kept:
        """The pool that has read the bank's visible texts, but none of `without`: exact, and then slower."""
        chunks = self.bank.list()
        self._kept = follow(self.lm, self.method, self._held(), chunks, on_progress)
        if not without:
            return self._kept
        return follow(self.lm, self.method, self._kept, [chunk for chunk in chunks if chunk.id not in set(without)])

    @property
    def num_bytes(self) -> int:
        """Of the pool as it was last asked for, or stands in its file."""
        return self._held().pool.num_bytes

    def start(self) -> Kept:
        """Before the first write."""
        return first(self.method, self.lm, self.seed)

    def put(self, kept: Kept) -> None:
        """Goes on from `kept`; the next `now` still makes it what the bank's texts make of it."""
        self._kept = kept

    def save(self) -> None:
        """Writes the file, where there is something new to keep: never a pool that has read a forgotten text."""
        if self._kept is None or (file := self.file) is None:
            return
        if (kept := self.now()) is not self._on_disk:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_kept(kept, file, self.method.fingerprint(self.lm))
            self._on_disk = kept

    def _held(self) -> Kept:
        if self._kept is None:
            fresh, file = self.start(), self.file
            known = file is not None and file.is_file()
            self._kept = load_kept(file, fresh, self.method.fingerprint(self.lm)) if file and known else fresh
            self._on_disk = self._kept
        return self._kept
