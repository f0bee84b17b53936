"""Batches of stored sequences, each with a reference per chunk; the next batch is read in a thread."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from threading import Thread

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from remanence.data.sequences import SequenceFolder
from remanence.train.core.parallel import own


@dataclass(frozen=True)
class Sequences:
    """ids_BT (int64): full sequences. `references[row][chunk]`: token ids of one reference per chunk; or empty."""

    ids_BT: Tensor
    references: list[list[list[int]]]

    def to(self, device: torch.device) -> Sequences:
        return Sequences(self.ids_BT.to(device), self.references)


class Loader:
    """Reads batches of `rows` sequences. Batch N of a seed is always the same.

    Every epoch reads all sequences once, in its own order; a batch may hold the end of one epoch and the start of the
    next. `references` False: the sequences alone. Each of several processes reads its own part.
    """

    def __init__(self, folder: SequenceFolder, rows: int, seed: int, *, references: bool) -> None:
        self.folder, self.rows, self.seed, self.references = folder, rows, seed, references
        self.ahead: tuple[int, Future[Sequences]] | None = None

    def batch(self, number: int) -> Sequences:
        """Batch `number`, on the CPU. A thread then reads the next one; its errors are raised by the next call."""
        ahead, self.ahead = self.ahead, None
        batch = ahead[1].result() if ahead and ahead[0] == number else self.read(number)
        self.ahead = (number + 1, _begin(self, number + 1))
        return batch

    def read(self, number: int) -> Sequences:
        rows = self.folder.rows(own(self.numbers(number)))
        ids_BT = torch.from_numpy(np.stack([row.ids for row in rows])).long()
        if not self.references:
            return Sequences(ids_BT, [])
        return Sequences(ids_BT, [self.folder.reference_ids(row.references) for row in rows])

    def numbers(self, number: int) -> list[int]:
        """The numbers of the sequences in a batch."""
        places = range(number * self.rows, (number + 1) * self.rows)
        size = len(self.folder)
        return [int(epoch_order(self.seed, place // size, size)[place % size]) for place in places]


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.uint32]:
    """A permutation of 0 … size - 1."""
    return np.random.default_rng([seed, epoch]).permutation(size).astype(np.uint32)


def _begin(loader: Loader, number: int) -> Future[Sequences]:
    """Reads one batch in a new thread: a thread that lived on would hang in a process that is forked later."""
    waiting: Future[Sequences] = Future()

    def work() -> None:
        try:
            waiting.set_result(loader.read(number))
        except BaseException as error:  # raised by `batch`
            waiting.set_exception(error)

    Thread(target=work, name="remanence-loader", daemon=True).start()
    return waiting
