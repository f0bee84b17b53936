"""A pool that is what its bank's texts make of it: it reads what is new, and again what followed a forgotten text."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING

from remanence.errors import BankCorrupted, BankMismatch, InputError
from remanence.lm.lm import LM
from remanence.methods.mplus.history import PoolHistory, Write
from remanence.methods.mplus.method import MPlus
from remanence.methods.mplus.pool import Pool
from remanence.methods.mplus.pool_file import load_history, save_history
from remanence.types import Chunk

if TYPE_CHECKING:
    from remanence.bank import Bank

TOGETHER_SECONDS = 1e-3
"""A bank puts the chunks of one commit a tick (a millionth of a second) apart."""
SNAPSHOT_WRITES = 32
"""A pool is kept after so many writes, so that forgetting need not read everything again. It shares all rows but N.

The older, the fewer: about two for each doubling of age.
"""


def groups(lm: LM, chunks: Sequence[Chunk], least: int, most: int) -> list[list[Chunk]]:
    """Chunks as they are written: one shorter than `least` tokens together with its neighbour of the same commit.

    Where both fit one write; a text that came by itself is written as it is.
    """
    found: list[list[Chunk]] = []
    sizes: list[int] = []
    for chunk in chunks:
        size = lm.count_tokens(chunk.text)
        joins = bool(found) and chunk.created - found[-1][-1].created < TOGETHER_SECONDS
        if joins and min(size, sizes[-1]) < least and sizes[-1] + size <= most:
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
    lm: LM, method: MPlus, kept: PoolHistory, chunks: Sequence[Chunk], on_progress: Callable[[int], None] | None = None
) -> PoolHistory:
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
        if len(ids) > method.config.chunk_tokens:
            raise BankMismatch(
                f"chunk {group[0].id} has {len(ids)} tokens for {lm.name}, a write takes {method.config.chunk_tokens}",
                "split it for this model: `remanence bank migrate` with the same --bank, --model and --method as now",
            )
        pool = _added(lm, method, kept.pool, ids, [chunk.id for chunk in group])
        write = Write(tuple(chunk.id for chunk in group), kept.pool.clock, pool.clock)
        kept = replace(kept, pool=pool, writes=(*kept.writes, write))
        if len(kept.writes) % SNAPSHOT_WRITES == 0:
            kept = replace(kept, snapshots=_thinned((*kept.snapshots, (len(kept.writes), pool))))
        if on_progress:
            on_progress(len(group))
    return kept


def _added(lm: LM, method: MPlus, pool: Pool, ids: Sequence[int], chunk_ids: Sequence[str]) -> Pool:
    try:
        return method.add(lm, pool, ids)
    except InputError as error:
        named = " ".join(chunk_ids)
        hint = f"forget it, where it is stored (`remanence bank forget {named}`), or use another model"
        raise InputError(f"{error.message}: chunk {named}", hint) from error


def first(method: MPlus, lm: LM, seed: int = 0) -> PoolHistory:
    """Before the first write."""
    pool = method.fresh(lm, seed)
    return PoolHistory(pool, (), ((0, pool),))


def _before(kept: PoolHistory, num_writes: int) -> PoolHistory:
    """`kept` after its first writes, no more than `num_writes`: where a snapshot was made, or all of them."""
    if num_writes == len(kept.writes):
        return kept
    number, pool = next((n, pool) for n, pool in reversed(kept.snapshots) if n <= num_writes)
    return PoolHistory(pool, kept.writes[:number], tuple(entry for entry in kept.snapshots if entry[0] <= number))


def _thinned(snapshots: tuple[tuple[int, Pool], ...]) -> tuple[tuple[int, Pool], ...]:
    newest = snapshots[-1][0] // SNAPSHOT_WRITES

    def stays(number: int) -> bool:
        at = number // SNAPSHOT_WRITES
        return at % (1 << max(0, (newest - at).bit_length() - 2)) == 0

    return tuple(entry for entry in snapshots if stays(entry[0]))


class BankPool:
    """The pool of one namespace of a bank for one model: brought up to the bank's texts whenever it is asked for.

    It is kept in a file beside the bank, which the bank removes when one of its texts is forgotten.
    """

    def __init__(self, lm: LM, method: MPlus, bank: Bank, seed: int) -> None:
        self.lm, self.method, self.bank, self.seed = lm, method, bank, seed
        self._kept: PoolHistory | None = None
        self._seen: list[str] | None = None
        self._saved: tuple[Write, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex): a pool is valid for exactly this model, method, config and seed."""
        return hashlib.sha256(f"{self.method.fingerprint(self.lm)} {self.seed}".encode()).hexdigest()

    def now(self, without: Collection[str] = (), on_progress: Callable[[int], None] | None = None) -> PoolHistory:
        """The pool that has read the bank's visible texts, but none of `without`: exact, and then slower."""
        chunks, kept = self.bank.list(), self._held()
        ids = [chunk.id for chunk in chunks]
        if ids != self._seen:
            self._kept = kept = follow(self.lm, self.method, kept, chunks, on_progress)
            self._seen = ids
        if not without:
            return kept
        return follow(self.lm, self.method, kept, [chunk for chunk in chunks if chunk.id not in set(without)])

    @property
    def num_bytes(self) -> int:
        """Of the pool as it was last asked for, or stands in its file."""
        return self._held().pool.num_bytes

    @property
    def ids(self) -> set[str]:
        """The texts that the pool has read."""
        return {id for write in self._kept.writes for id in write.ids} if self._kept else set()

    def num_merged(self, ids: Collection[str]) -> int:
        """How many of `ids` were read together with others in one write."""
        writes = self._kept.writes if self._kept else ()
        return len({id for write in writes if len(write.ids) > 1 for id in write.ids} & set(ids))

    def start(self) -> PoolHistory:
        """Before the first write."""
        return first(self.method, self.lm, self.seed)

    def put(self, kept: PoolHistory) -> None:
        """Goes on from `kept`; the next `now` still makes it what the bank's texts make of it."""
        self._kept, self._seen = kept, None

    def cut(self, gone: Collection[str]) -> None:
        """Back to a pool that has read none of `gone`; nothing is read again yet."""
        if self._kept is not None and not self.ids.isdisjoint(gone):
            writes = self._kept.writes
            clean = next(n for n, write in enumerate(writes) if not set(write.ids).isdisjoint(gone))
            self.put(_before(self._kept, clean))

    def save(self) -> None:
        """Writes the file, where there is something new to keep: never of a pool that has read a forgotten text.

        Nothing is read for it: what the pool has not read yet, the next session's will.
        """
        if self._kept is None or not self.bank.is_open:
            return
        self.cut(self.ids - {chunk.id for chunk in self.bank.list()})
        kept, file = self._kept, self.bank.pool_file(self.fingerprint)
        if file is not None and (kept.writes != self._saved or not file.is_file()):
            self.bank.keep_pool(self.fingerprint, self.ids, lambda path: save_history(kept, path, self.fingerprint))
            self._saved = kept.writes

    def _held(self) -> PoolHistory:
        if self._kept is None:
            self._kept = self._read()
            self._saved = self._kept.writes
        return self._kept

    def _read(self) -> PoolHistory:
        """Text is the truth: a file that is damaged or gone costs reading again, not the bank."""
        fresh, file = self.start(), self.bank.pool_file(self.fingerprint)
        if file is None or not file.is_file():
            return fresh
        try:
            return load_history(file, fresh, self.fingerprint)
        except (BankCorrupted, BankMismatch, InputError) as error:
            warnings.warn(f"{error.args[0]}; the pool is made again from the bank's texts", stacklevel=2)
            return fresh
