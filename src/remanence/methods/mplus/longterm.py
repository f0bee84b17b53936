"""Long-term memory (M+ §3.2): rows that the pool dropped, staged, merged, and evicted."""

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
    """How many rows per layer stay, and which are evicted.

    "age": the oldest rows are evicted at a merge, and `capacity_rows` is never exceeded. "reference" is the authors'
    code: a merged row starts with the frequency `initial_frequency`, each merge subtracts `decay` from all, and rows
    at zero are evicted, but only where more than `at_least_rows` stay. A merge follows after `merge_rows` rows.
    """

    eviction: Eviction = "age"
    capacity_rows: int = 153_600
    merge_rows: int = 60 * 256
    initial_frequency: float = 10.0
    decay: float = 1.0
    at_least_rows: int = 2560


@dataclass(frozen=True)
class LongTerm:
    """A value: every change makes a new one. The first `num_merged` rows are merged, the others staged; both are read.

    `oldest_L` (int64): rows born before it are evicted ("age"). For "reference" alone: `decays_L`, what the merges have
    subtracted in each layer so far; `dies_LM`, the value of `decays_L` at which each merged row is evicted; `kept_LM`
    (bool), the merged rows that are not evicted.
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
        """Without a row; `blocks` must be empty."""
        oldest_L = torch.full((blocks.num_layers,), torch.iinfo(torch.long).min)
        if keeping.eviction == "age":
            return LongTerm(keeping, blocks, oldest_L)
        decays_L, none_LM = torch.zeros(blocks.num_layers), torch.empty(blocks.num_layers, 0)
        return LongTerm(keeping, blocks, oldest_L, 0, decays_L, none_LM, none_LM.bool())

    @property
    def num_staged(self) -> int:
        """Rows per layer that wait for the next merge."""
        return self.blocks.num_rows - self.num_merged

    def stage(self, row_LNC: Tensor, key_LNE: Tensor, born_LN: Tensor) -> LongTerm:
        """With rows that the pool has just dropped; a merge follows when `merge_rows` are staged."""
        staged = replace(self, blocks=self.blocks.append(row_LNC, key_LNE, born_LN))
        return staged.merge() if staged.num_staged >= self.keeping.merge_rows else staged

    def merge(self) -> LongTerm:
        """With all staged rows merged and surplus rows evicted; no row is copied."""
        merged = self._merge_by_frequency() if self.keeping.eviction == "reference" else self._merge_by_age()
        return merged._freed()

    def _merge_by_age(self) -> LongTerm:
        num_kept = max(1, self.keeping.capacity_rows - self.keeping.merge_rows)  # staged rows fill the rest
        born_LM, oldest_L = self.blocks.born_LM(), self.oldest_L
        if born_LM.shape[1] > num_kept:
            oldest_L = torch.maximum(oldest_L, born_LM.topk(num_kept, dim=1, sorted=False).values.amin(1))
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
        """Without the first blocks whose rows are evicted in every layer."""
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
        """alive_M (bool): rows of one layer that are not evicted, staged ones included."""
        if self.kept_LM is None:
            return self.blocks.born(layer) >= self.oldest_L[layer]
        return torch.cat([self.kept_LM[layer], torch.ones(self.num_staged, dtype=torch.bool)])

    def frequency(self, layer: int) -> Tensor:
        """frequency_M of the merged rows of one layer, as the authors' code counts it ("reference" alone)."""
        assert self.dies_LM is not None
        assert self.decays_L is not None
        return self.dies_LM[layer] - self.decays_L[layer]
