"""A pool and the writes that made it: which text each of its rows came from, and where to go back to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.methods.mplus.pool import Pool


@dataclass(frozen=True)
class Write:
    """What one write read: chunks (short ones together), and the pool's clock before and after."""

    ids: tuple[str, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class PoolHistory:
    """A value: the pool, the writes that made it, and pools after some of them (number of writes, pool)."""

    pool: Pool
    writes: tuple[Write, ...] = ()
    snapshots: tuple[tuple[int, Pool], ...] = ()

    def write_of(self, born_M: Tensor) -> Tensor:
        """write_M: which of `writes` made the rows born then; -1 for rows of the first pool."""
        if not self.writes:
            return torch.full_like(born_M, -1)
        end_W = torch.tensor([write.end for write in self.writes])
        return torch.where(born_M > self.writes[0].begin, torch.searchsorted(end_W, born_M), -1)
