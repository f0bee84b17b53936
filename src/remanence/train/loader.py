"""Batches of stored sequences: number N is always the same, and N + 1 is read while N is trained on."""

from __future__ import annotations

from concurrent.futures import Future
from functools import lru_cache
from threading import Thread

import numpy as np
import torch
from numpy.typing import NDArray

from remanence.data.sequences import SequenceFolder
from remanence.train.parallel import own
from remanence.train.sequences import Sequences


class Loader:
    """Every epoch reads all sequences once, in an order of its own; a batch may hold the end of one and the next.

    `references` False: rows alone, without what their chunks read. Of many processes each reads its own rows.
    """

    def __init__(self, folder: SequenceFolder, rows: int, seed: int, *, references: bool) -> None:
        self.folder, self.rows, self.seed, self.references = folder, rows, seed, references
        self.ahead: tuple[int, Future[Sequences]] | None = None

    def batch(self, number: int) -> Sequences:
        """On the CPU; from now on the next one is read in a thread. What goes wrong there is raised here."""
        ahead, self.ahead = self.ahead, None
        found = ahead[1].result() if ahead and ahead[0] == number else self.read(number)
        self.ahead = (number + 1, _begin(self, number + 1))
        return found

    def read(self, number: int) -> Sequences:
        rows = self.folder.rows(own(self.numbers(number)))
        ids_BT = torch.from_numpy(np.stack([row.ids for row in rows])).long()
        if not self.references:
            return Sequences(ids_BT, [])
        return Sequences(ids_BT, [self.folder.reference_ids(row.references) for row in rows])

    def numbers(self, number: int) -> list[int]:
        """Of the sequences in a batch."""
        places = range(number * self.rows, (number + 1) * self.rows)
        size = len(self.folder)
        return [int(epoch_order(self.seed, place // size, size)[place % size]) for place in places]


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.uint32]:
    """A permutation of 0 … size - 1."""
    return np.random.default_rng([seed, epoch]).permutation(size).astype(np.uint32)


def _begin(loader: Loader, number: int) -> Future[Sequences]:
    """A thread for one batch: one that lasts hangs in a process that was forked after its first use."""
    waiting: Future[Sequences] = Future()

    def work() -> None:
        try:
            waiting.set_result(loader.read(number))
        except BaseException as error:  # raised where the batch is asked for
            waiting.set_exception(error)

    Thread(target=work, name="remanence-loader", daemon=True).start()
    return waiting
