"""Long-term memory: what dropped out of the pool, staged, merged, and evicted by age or as the authors' code does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from remanence.methods.mplus.blocks import Blocks

Eviction = Literal["age", "reference"]
DEAD_BELOW = 0.01
"""A recall frequency below it is evicted (the authors' code)."""


@dataclass(frozen=True)
class Keeping:
    """How much is kept: `capacity_rows` is never exceeded with "age", whose oldest rows leave at a merge.

    "reference" is the authors' code: a merged row starts at `initial_frequency`, each merge takes
    `decay` from all, and rows at zero leave, but only where more than `at_least_rows` stay.
    """

    eviction: Eviction = "age"
    capacity_rows: int = 153_600
    merge_rows: int = 60 * 256
    initial_frequency: float = 10.0
    decay: float = 1.0
    at_least_rows: int = 2560


@dataclass(frozen=True)
class LongTerm:
    """A value. The first `num_merged` rows are merged, the others staged; both are read.

    `oldest_L`: rows born before it are gone ("age"). `dies_LM`: the number of decays at which a merged row goes
    ("reference"), of which a layer has had `decays_L`; `kept_LM`: which merged rows
    the merges so far have left.
    """

    keeping: Keeping
    blocks: Blocks
    oldest_L: Tensor
    num_merged: int = 0
    decays_L: Tensor | None = None
    dies_LM: Tensor | None = None
    kept_LM: Tensor | None = None

    @staticmethod
    def empty(keeping: Keeping, blocks: Blocks) -> LongTerm:
        oldest_L = torch.full((blocks.num_layers,), torch.iinfo(torch.long).min)
        if keeping.eviction == "age":
            return LongTerm(keeping, blocks, oldest_L)
        decays_L, none_LM = torch.zeros(blocks.num_layers), torch.empty(blocks.num_layers, 0)
        return LongTerm(keeping, blocks, oldest_L, 0, decays_L, none_LM, none_LM.bool())

    @property
    def num_staged(self) -> int:
        return self.blocks.num_rows - self.num_merged

    def stage(self, row_LNC: Tensor, key_LNE: Tensor, born_LN: Tensor) -> LongTerm:
        """Rows that have just dropped out of the pool; a merge follows when `merge_rows` are staged."""
        staged = replace(self, blocks=self.blocks.append(row_LNC, key_LNE, born_LN))
        return staged.merge() if staged.num_staged >= self.keeping.merge_rows else staged

    def merge(self) -> LongTerm:
        """Staged rows become merged ones and rows too many are evicted; no row is copied."""
        merged = self._merge_by_frequency() if self.keeping.eviction == "reference" else self._merge_by_age()
        return merged._freed()

    def _merge_by_age(self) -> LongTerm:
        kept = max(1, self.keeping.capacity_rows - self.keeping.merge_rows)  # the next stage fills the rest
        born_LM, oldest_L = self.blocks.born_LM(), self.oldest_L
        if born_LM.shape[1] > kept:
            oldest_L = torch.maximum(oldest_L, born_LM.topk(kept, dim=1, sorted=False).values.amin(1))
        return replace(self, num_merged=self.blocks.num_rows, oldest_L=oldest_L)

    def _merge_by_frequency(self) -> LongTerm:
        assert self.dies_LM is not None
        assert self.decays_L is not None
        assert self.kept_LM is not None
        dies_L = self.decays_L + self.keeping.initial_frequency
        dies_LM = torch.cat([self.dies_LM, dies_L[:, None].expand(-1, self.num_staged)], dim=1)
        kept_LM = torch.cat([self.kept_LM, torch.ones(len(dies_L), self.num_staged, dtype=torch.bool)], dim=1)
        fewer_L = self.decays_L + self.keeping.decay
        alive_LM = kept_LM & (dies_LM - fewer_L[:, None] > DEAD_BELOW)
        enough_L = alive_LM.sum(1) > self.keeping.at_least_rows
        decays_L = torch.where(enough_L, fewer_L, self.decays_L)
        kept_LM = torch.where(enough_L[:, None], alive_LM, kept_LM)
        return replace(self, num_merged=self.blocks.num_rows, dies_LM=dies_LM, decays_L=decays_L, kept_LM=kept_LM)

    def _freed(self) -> LongTerm:
        """Without the first blocks, where every row of them is gone in every layer."""
        alive_LM = torch.stack([self.alive(layer) for layer in range(self.blocks.num_layers)])
        num_blocks = num_rows = 0
        for count in self.blocks.counts[:-1]:
            if alive_LM[:, num_rows : num_rows + count].any():
                break
            num_blocks, num_rows = num_blocks + 1, num_rows + count
        if not num_blocks:
            return self
        dies_LM, kept_LM = (None if part is None else part[:, num_rows:] for part in (self.dies_LM, self.kept_LM))
        blocks, num_merged = self.blocks.without_first(num_blocks), self.num_merged - num_rows
        return replace(self, blocks=blocks, num_merged=num_merged, dies_LM=dies_LM, kept_LM=kept_LM)

    # -- reading ---------------------------------------------------------------------------------------------

    def alive(self, layer: int) -> Tensor:
        """alive_M (bool) of all rows, staged ones too."""
        if self.kept_LM is None:
            return self.blocks.born(layer) >= self.oldest_L[layer]
        return torch.cat([self.kept_LM[layer], torch.ones(self.num_staged, dtype=torch.bool)])

    def frequency(self, layer: int) -> Tensor:
        """frequency_M of the merged rows, as the authors' code counts it."""
        assert self.dies_LM is not None
        assert self.decays_L is not None
        return self.dies_LM[layer] - self.decays_L[layer]
