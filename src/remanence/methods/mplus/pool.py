"""The pool of hidden rows per layer, as a value: what a write takes and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from remanence.errors import InputError
from remanence.methods.mplus.longterm import LongTerm

Ages = Literal["true", "reference"]


@dataclass(frozen=True)
class Pool:
    """`row_LNC` oldest first, the newest rows last; `born_LN`: the clock when a row was written.

    The clock counts rows per layer, so a row's age is `clock - born`. `random`: the state of the generator that
    the next write draws from.
    """

    row_LNC: Tensor
    born_LN: Tensor
    clock: int
    long: LongTerm
    random: Tensor

    @property
    def age_LN(self) -> Tensor:
        return self.clock - self.born_LN

    @property
    def num_bytes(self) -> int:
        blocks = self.long.blocks
        return self.row_LNC.nbytes + self.born_LN.nbytes + blocks.num_rows * blocks.bytes_of_row

    def generator(self) -> torch.Generator:
        found = torch.Generator()
        found.set_state(self.random)
        return found


def seeded(seed: int) -> Tensor:
    """The state of a fresh generator, as a pool keeps it."""
    return torch.Generator().manual_seed(seed).get_state()


def replaced(
    pool: Pool, fresh_LKC: Tensor, dropped_LK: Tensor, key_LKE: Tensor, *, ages: Ages = "true", ticks: int = 0
) -> Pool:
    """The pool after a write: `dropped_LK` (places, ascending) go to long-term memory, `fresh_LKC` come last.

    `key_LKE` are the search keys of the dropped rows. Ages "reference": as the released code has them, where a row
    does not grow older while it is in the pool (authors' code). No gradient flows. Raises InputError for rows
    that are not finite; the pool that was given is as it was.
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
    kept_LN = torch.ones_like(born_LN, dtype=torch.bool).scatter_(1, dropped_LK, False)
    L, N, C = pool.row_LNC.shape
    index_LKC = dropped_LK[..., None].expand(-1, -1, C).to(pool.row_LNC.device)
    long = pool.long.stage(pool.row_LNC.gather(1, index_LKC), key_LKE, born_LN.gather(1, dropped_LK))
    row_LNC, kept_at_LN = torch.empty_like(pool.row_LNC), kept_LN.nonzero()[:, 1].view(L, N - K).to(pool.row_LNC.device)
    for layer in range(L):  # a layer at a time: two pools are held at once, not three
        torch.index_select(pool.row_LNC[layer], 0, kept_at_LN[layer], out=row_LNC[layer, : N - K])
    row_LNC[:, N - K :] = fresh_LKC.to(row_LNC)
    fresh_born_LK = (clock - K + 1 + torch.arange(K)).expand(L, -1)
    return replace(
        pool,
        row_LNC=row_LNC,
        born_LN=torch.cat([born_LN[kept_LN].view(L, N - K), fresh_born_LK], dim=1),
        clock=clock,
        long=long,
    )
