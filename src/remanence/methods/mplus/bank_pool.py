"""The state of M+ in a session: a pool that has read exactly the texts of a bank, each write in the same order."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from remanence.errors import BankCorrupted, BankMismatch, InputError
from remanence.methods.base import MethodState
from remanence.methods.mplus.pool import Pool, PoolHistory, Write
from remanence.methods.mplus.pool_file import load_history, save_history
from remanence.types import Chunk

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.lm.lm import LM
    from remanence.methods.mplus.config import MPlusConfig

POOL_FILE = "pool.safetensors"
"""In the folder of a saved session."""
TOGETHER_SECONDS = 1e-3
"""A bank puts the chunks of one commit a tick (a millionth of a second) apart."""
SNAPSHOT_WRITES = 32
"""The pool is kept after every so many writes, so that forgetting need not read everything again.

Such pools share all blocks of long-term memory. The older they are, the fewer stay: about two for each doubling of age.
"""


class PoolWriter(Protocol):
    """What a pool needs of its method, which is `MPlus`."""

    config: MPlusConfig

    def fingerprint(self, lm: LM) -> str:
        """See `Method.fingerprint`."""
        ...

    def fresh(self, lm: LM, seed: int = 0) -> Pool:
        """The pool before the first write."""
        ...

    def add(self, lm: LM, pool: Pool, ids: Sequence[int]) -> Pool:
        """`pool` after it has read these tokens."""
        ...


def group_chunks(lm: LM, chunks: Sequence[Chunk], least_tokens: int, most_tokens: int) -> list[list[Chunk]]:
    """The chunks of each write, in order.

    A chunk of fewer than `least_tokens` is written together with its neighbour of the same commit, where both have at
    most `most_tokens`. A text that was stored by itself is written by itself.
    """
    groups: list[list[Chunk]] = []
    sizes: list[int] = []
    for chunk in chunks:
        size = lm.count_tokens(chunk.text)
        joins = bool(groups) and chunk.created - groups[-1][-1].created < TOGETHER_SECONDS
        if joins and min(size, sizes[-1]) < least_tokens and sizes[-1] + size <= most_tokens:
            groups[-1].append(chunk)
            sizes[-1] += size
        else:
            groups.append([chunk])
            sizes.append(size)
    return groups


def reading_order(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The order in which a pool reads chunks: by time, then by their place in a text."""
    return sorted(chunks, key=lambda chunk: (chunk.created, chunk.source, chunk.start, chunk.id))


def empty_history(lm: LM, method: PoolWriter, seed: int = 0) -> PoolHistory:
    """The history before the first write."""
    pool = method.fresh(lm, seed)
    return PoolHistory(pool, (), ((0, pool),))


def follow(
    lm: LM,
    method: PoolWriter,
    history: PoolHistory,
    chunks: Sequence[Chunk],
    on_progress: Callable[[int], None] | None = None,
) -> PoolHistory:
    """The history of a pool that has only ever read `chunks`, bit for bit.

    Writes before the first difference to `history` are used again. After a text was forgotten, the pool returns to
    before its write and reads all that follows again: M+ has no other exact way. `on_progress` is called with the
    number of chunks of each write. Raises BankMismatch for a chunk that is too long for one write.
    """
    groups = group_chunks(lm, reading_order(chunks), method.config.min_chunk_tokens, method.config.chunk_tokens)
    pairs = zip(history.writes, groups, strict=False)
    num_same = sum(1 for _ in takewhile(lambda pair: pair[0].ids == tuple(c.id for c in pair[1]), pairs))
    history = _before(history, num_same)
    for group in groups[len(history.writes) :]:
        pool = _written(lm, method, history.pool, group)
        write = Write(tuple(chunk.id for chunk in group), history.pool.clock, pool.clock)
        history = replace(history, pool=pool, writes=(*history.writes, write))
        if len(history.writes) % SNAPSHOT_WRITES == 0:
            history = replace(history, snapshots=_thinned((*history.snapshots, (len(history.writes), pool))))
        if on_progress:
            on_progress(len(group))
    return history


def _written(lm: LM, method: PoolWriter, pool: Pool, group: Sequence[Chunk]) -> Pool:
    ids = [token for chunk in group for token in lm.encode(chunk.text)]
    if len(ids) > method.config.chunk_tokens:
        raise BankMismatch(
            f"chunk {group[0].id} has {len(ids)} tokens for {lm.name}, a write takes {method.config.chunk_tokens}",
            "split it for this model: `remanence bank migrate` with the same --bank, --model and --method as now",
        )
    try:
        return method.add(lm, pool, ids)
    except InputError as error:
        names = " ".join(chunk.id for chunk in group)
        hint = f"forget it, where it is stored (`remanence bank forget {names}`), or use another model"
        raise InputError(f"{error.message}: chunk {names}", hint) from error


def _before(history: PoolHistory, num_writes: int) -> PoolHistory:
    """`history` after its first writes, at most `num_writes`: the nearest for which a pool exists."""
    if num_writes == len(history.writes):
        return history
    number, pool = next((n, pool) for n, pool in reversed(history.snapshots) if n <= num_writes)
    return PoolHistory(pool, history.writes[:number], tuple(entry for entry in history.snapshots if entry[0] <= number))


def _thinned(snapshots: tuple[tuple[int, Pool], ...]) -> tuple[tuple[int, Pool], ...]:
    newest = snapshots[-1][0] // SNAPSHOT_WRITES

    def stays(number: int) -> bool:
        at = number // SNAPSHOT_WRITES
        return at % (1 << max(0, (newest - at).bit_length() - 2)) == 0

    return tuple(entry for entry in snapshots if stays(entry[0]))


class BankPool(MethodState):
    """The pool of one namespace of a bank, for one model, method and seed.

    The pool is stored in a file beside the bank. The bank removes the file when one of its texts is forgotten.
    """

    def __init__(self, lm: LM, method: PoolWriter, bank: Bank, seed: int) -> None:
        self.lm, self.method, self.bank, self.seed = lm, method, bank, seed
        self._history: PoolHistory | None = None
        self._read_ids: list[str] | None = None
        self._saved: tuple[Write, ...] = ()
        self._fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex): a pool is valid for exactly this model, method, config and seed."""
        if not self._fingerprint:
            self._fingerprint = hashlib.sha256(f"{self.method.fingerprint(self.lm)} {self.seed}".encode()).hexdigest()
        return self._fingerprint

    def update(self, without: Collection[str] = (), on_progress: Callable[[int], None] | None = None) -> PoolHistory:
        """See `MethodState.update`. With `without` the pool reads again what follows the first of these ids."""
        chunks, history = self.bank.list(), self._held()
        ids = [chunk.id for chunk in chunks]
        if ids != self._read_ids:
            self._history = history = follow(self.lm, self.method, history, chunks, on_progress)
            self._read_ids = ids
        if not without:
            return history
        return follow(self.lm, self.method, history, [chunk for chunk in chunks if chunk.id not in set(without)])

    def snapshot(self) -> PoolHistory:
        """See `MethodState.snapshot`; it shares all rows that do not change."""
        return self.update()

    def restore(self, value: object) -> None:
        """See `MethodState.restore`."""
        assert isinstance(value, PoolHistory)
        self._history, self._read_ids = value, None

    def remove(self, ids: Collection[str]) -> None:
        """See `MethodState.remove`: back to before the first write that read one of `ids`; `update` reads the rest."""
        if self._history is not None and not self.ids.isdisjoint(ids):
            writes = self._history.writes
            num_clean = next(n for n, write in enumerate(writes) if not set(write.ids).isdisjoint(ids))
            self.restore(_before(self._history, num_clean))

    def write(self, folder: Path) -> None:
        """See `MethodState.write`."""
        save_history(self.update(), folder / POOL_FILE, self.fingerprint)

    def read(self, folder: Path) -> PoolHistory | None:
        """See `MethodState.read`."""
        file = folder / POOL_FILE
        return load_history(file, self._empty(), self.fingerprint) if file.is_file() else None

    @property
    def ids(self) -> set[str]:
        """See `MethodState.ids`."""
        return {id for write in self._history.writes for id in write.ids} if self._history else set()

    @property
    def num_bytes(self) -> int:
        """Bytes of the pool as it was last updated, or is stored in its file."""
        return self._held().pool.num_bytes

    def num_merged(self, ids: Collection[str]) -> int:
        """How many of `ids` share their write with another chunk."""
        writes = self._history.writes if self._history else ()
        return len({id for write in writes if len(write.ids) > 1 for id in write.ids} & set(ids))

    def close(self) -> None:
        """Writes the file, where the pool has changed; never with a text that was forgotten.

        Texts that the pool has not read yet are left to the next session.
        """
        if self._history is None or not self.bank.is_open:
            return
        self.remove(self.ids - {chunk.id for chunk in self.bank.list()})
        history, file = self._history, self.bank.pool_file(self.fingerprint)
        if file is not None and (history.writes != self._saved or not file.is_file()):
            self.bank.keep_pool(self.fingerprint, self.ids, lambda path: save_history(history, path, self.fingerprint))
            self._saved = history.writes

    def _empty(self) -> PoolHistory:
        return empty_history(self.lm, self.method, self.seed)

    def _held(self) -> PoolHistory:
        if self._history is None:
            self._history = self._read_file()
            self._saved = self._history.writes
        return self._history

    def _read_file(self) -> PoolHistory:
        """A damaged or missing file costs time, no data: the pool reads the bank's texts again."""
        empty, file = self._empty(), self.bank.pool_file(self.fingerprint)
        if file is None or not file.is_file():
            return empty
        try:
            return load_history(file, empty, self.fingerprint)
        except (BankCorrupted, BankMismatch, InputError) as error:
            warnings.warn(f"{error.args[0]}; the pool is made again from the bank's texts", stacklevel=2)
            return empty
