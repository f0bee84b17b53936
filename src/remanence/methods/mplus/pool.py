"""The memory pool of M+ as a value, what a write makes of it, and the history of its writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from remanence.errors import InputError
from remanence.methods.mplus.longterm import LongTerm

Ages = Literal["true", "reference"]
"""How old rows are: by the pool's clock, or as in the authors' code."""


@dataclass(frozen=True)
class Pool:
    """The pool after a write (M+ §3.1). A value: a write makes a new one.

    `row_LNC`: hidden states in the model's dtype, oldest first. `born_LN` (int64): the clock when each was written.
    `clock` counts the rows that were written to each layer, so that a row's age is `clock - born`. `long`: the rows
    that the pool has dropped. `random` (uint8): the state of the generator that the next write draws from.
    """

    row_LNC: Tensor
    born_LN: Tensor
    clock: int
    long: LongTerm
    random: Tensor

    @property
    def age_LN(self) -> Tensor:
        """Clock ticks since each row was written (int64)."""
        return self.clock - self.born_LN

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows, the clocks and long-term memory."""
        blocks = self.long.blocks
        return self.row_LNC.nbytes + self.born_LN.nbytes + blocks.num_rows * blocks.bytes_of_row

    def generator(self) -> torch.Generator:
        """A generator in the state `random`."""
        generator = torch.Generator()
        generator.set_state(self.random)
        return generator


@dataclass(frozen=True)
class Write:
    """One write: the ids of the chunks that it read together, and the pool's clock before and after it."""

    ids: tuple[str, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class PoolHistory:
    """A pool, the writes that made it, and the pools after some of them: (number of writes, pool). A value."""

    pool: Pool
    writes: tuple[Write, ...] = ()
    snapshots: tuple[tuple[int, Pool], ...] = ()

    def write_of(self, born_M: Tensor) -> Tensor:
        """write_M (int64): the index in `writes` of the write that made each row; -1 for rows of the first pool."""
        if not self.writes:
            return torch.full_like(born_M, -1)
        end_W = torch.tensor([write.end for write in self.writes])
        return torch.where(born_M > self.writes[0].begin, torch.searchsorted(end_W, born_M), -1)


def seeded(seed: int) -> Tensor:
    """The state of a generator with this seed, for `Pool.random`."""
    return torch.Generator().manual_seed(seed).get_state()


def replaced(
    pool: Pool, fresh_LKC: Tensor, dropped_LK: Tensor, key_LKE: Tensor, *, ages: Ages = "true", ticks: int = 0
) -> Pool:
    """The pool after a write (M+ §3.1): the rows at `dropped_LK` enter long-term memory, `fresh_LKC` come last.

    `dropped_LK`: places in the pool, ascending. `key_LKE`: search keys of these rows. `ages` "reference": a row does
    not age while it is in the pool (the authors' code). `ticks`: by how much the clock advances, at least K. No
    gradient flows. Raises InputError for rows that are not finite; `pool` itself never changes.
    """
    if not torch.isfinite(fresh_LKC).all():
        raise InputError(
            "the model made hidden states that are not finite (NaN or infinity) of this text",
            "nothing was written; check the model's weights and dtype",
        )
    K = fresh_LKC.shape[1]
    ticks = max(ticks, K)
    clock = pool.clock + ticks
    born_LN = pool.born_LN + ticks if ages == "reference" else pool.born_LN
    stays_LN = torch.ones_like(born_LN, dtype=torch.bool).scatter_(1, dropped_LK, False)
    L, N, C = pool.row_LNC.shape
    index_LKC = dropped_LK[..., None].expand(-1, -1, C).to(pool.row_LNC.device)
    long = pool.long.stage(pool.row_LNC.gather(1, index_LKC), key_LKE, born_LN.gather(1, dropped_LK))
    row_LNC = torch.empty_like(pool.row_LNC)
    stays_at_LN = stays_LN.nonzero()[:, 1].view(L, N - K).to(pool.row_LNC.device)
    for layer in range(L):  # a layer at a time: two pools are held at once, not three
        torch.index_select(pool.row_LNC[layer], 0, stays_at_LN[layer], out=row_LNC[layer, : N - K])
    row_LNC[:, N - K :] = fresh_LKC.to(row_LNC)
    fresh_born_LK = (clock - K + 1 + torch.arange(K)).expand(L, -1)
    return replace(
        pool,
        row_LNC=row_LNC,
        born_LN=torch.cat([born_LN[stays_LN].view(L, N - K), fresh_born_LK], dim=1),
        clock=clock,
        long=long,
    )
