"""What a batch reads: the pool and the rows of long-term memory that a ranker selects, as keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from remanence.errors import InputError
from remanence.lm.hidden_states import rows_to_kv
from remanence.lm.lm import LM
from remanence.methods.mplus.int8_kv import Int8KV
from remanence.methods.mplus.modules import MPlusModules
from remanence.methods.mplus.pool import Pool
from remanence.methods.mplus.prefetch import LayerPrefetch
from remanence.methods.mplus.rankers import Ranker, RankerInput, select, trained
from remanence.types import KV


@dataclass
class PoolPrefix:
    """The prefix `[first vector; long-term rows; pool]` (M+ §3.2), filled layer by layer at the first pass, then fixed.

    `pools`: one for all prompts of a batch, or one for each (beams: prompts of one pool stand together). `mask_BT`: 1
    where there is text. `num_slots`: rows that are read of long-term memory, ranked by `ranker`; with `fill`, too few
    merged rows are repeated (the authors' code). `small`: keys and values are held as int8. `prefetch`: a layer's pool
    and search keys are fetched while the layer before it computes. `kvs` and `chosen` are results: keys and values of
    each layer, and `chosen[layer][b]`, the places in long-term memory that prompt b has read.
    """

    lm: LM
    modules: MPlusModules
    pools: Sequence[Pool]
    num_slots: int
    ranker: Ranker = trained
    mask_BT: Tensor | None = None
    fill: bool = False
    refresh_tokens: int | None = None
    small: bool = False
    prefetch: bool = False
    kvs: dict[int, KV | Int8KV] = field(default_factory=dict)
    chosen: dict[int, list[Tensor]] = field(default_factory=dict)
    _fetcher: LayerPrefetch | None = field(default=None, repr=False)

    @property
    def offset_tokens(self) -> int:
        return 1 + self.num_slots + self.pools[0].row_LNC.shape[1]

    def __call__(self, layer: int, hidden_BTC: Tensor) -> KV:
        if layer not in self.kvs:
            kv = self._read(layer, hidden_BTC)
            self.kvs[layer] = Int8KV.of(kv) if self.small else kv
        return self._kv(layer)

    def _kv(self, layer: int) -> KV:
        held = self.kvs[layer]
        return held.kv if isinstance(held, Int8KV) else held

    def of_prompt(self, b: int) -> PoolPrefix:
        """What prompt `b` of the batch has read, as a prefix for a batch of one."""
        kvs = {
            layer: kv.of_prompt(b) if isinstance(kv, Int8KV) else _kv_of_prompt(kv, b) for layer, kv in self.kvs.items()
        }
        return replace(self, kvs=kvs, chosen={layer: [index_Ns[b]] for layer, index_Ns in self.chosen.items()})

    def born(self, b: int, layer: int) -> Tensor:
        """born_M (int64): the clock when each row that prompt `b` has read was written; 0 for slots without a row."""
        pool = self.pools[b * len(self.pools) // len(self.chosen[layer])]
        long_M = pool.long.blocks.born(layer)[self.chosen[layer][b]]
        num_empty = max(map(len, self.chosen[layer])) - len(long_M)
        return torch.cat([torch.zeros(1 + num_empty, dtype=torch.long), long_M, pool.born_LN[layer]])

    def _read(self, layer: int, hidden_BTC: Tensor) -> KV:
        B, P = len(hidden_BTC), len(self.pools)
        if B % P:
            raise InputError(f"{P} pools cannot be read by a batch of {B} rows", "give one pool, or one for each row")
        pools, each = self.pools, B // P
        fetched = self._fetched(layer)
        self.chosen[layer] = [
            index_N
            for p in range(P)
            for index_N in self._choose(layer, hidden_BTC, slice(p * each, (p + 1) * each), pools[p], fetched[p][1])
        ]
        own = [pools[b // each] for b in range(B)]
        long_NCs = [
            pool.long.blocks.rows(layer, i).to(hidden_BTC) for pool, i in zip(own, self.chosen[layer], strict=True)
        ]
        return self._joined(layer, hidden_BTC, long_NCs, [row_NC for row_NC, _ in fetched])

    def _fetched(self, layer: int) -> list[tuple[Tensor, list[Tensor] | None]]:
        """Of each pool its rows and, where they were fetched ahead, its search keys."""
        if not self.prefetch:
            return [(pool.row_LNC[layer], None) for pool in self.pools]
        if self._fetcher is None:
            fetch = partial(_of_layer, self.pools, self.num_slots > 0)  # not of this prefix, which would hold itself
            self._fetcher = LayerPrefetch(fetch, self.lm.dims.num_layers, self.lm.device)
        tensors, parts = self._fetcher.take(layer), []
        if layer == self.lm.dims.num_layers - 1:
            self._fetcher = None
        for pool in self.pools:
            count = len(pool.long.blocks.blocks) if self.num_slots else 0
            parts.append((tensors[0], tensors[1 : 1 + count]))
            tensors = tensors[1 + count :]
        return parts

    def _choose(
        self, layer: int, hidden_BTC: Tensor, prompts: slice, pool: Pool, key_NEs: list[Tensor] | None
    ) -> list[Tensor]:
        hidden_BTC = hidden_BTC[prompts]
        if not pool.long.blocks.num_rows or not self.num_slots:
            return [torch.empty(0, dtype=torch.long)] * len(hidden_BTC)
        mask_BT = None if self.mask_BT is None else self.mask_BT[prompts]
        ranker_input = RankerInput(self.lm, self.modules, layer, hidden_BTC, mask_BT, key_NEs)
        return select(pool, layer, self.ranker(ranker_input, pool), self.num_slots, fill=self.fill)

    def _joined(self, layer: int, hidden_BTC: Tensor, long_NCs: list[Tensor], pool_NCs: Sequence[Tensor]) -> KV:
        """Long-term rows stand right in front of the pool; slots that nothing fills are seen by nobody."""
        B, most, device = len(hidden_BTC), max(map(len, long_NCs)), hidden_BTC.device
        bos_BMC = self.modules.bos_LC[layer].to(hidden_BTC).expand(1, 1, -1)
        model, N = self.lm.model, self.pools[0].row_LNC.shape[1]
        parts = [rows_to_kv(model, layer, bos_BMC, torch.zeros(1, dtype=torch.long), "read")]
        if most:
            long_BMC = torch.stack([_left_padded(row_NC, most) for row_NC in long_NCs])
            at_M = torch.arange(self.num_slots - most, self.num_slots) + 1
            parts.append(rows_to_kv(model, layer, long_BMC, at_M, "read"))
        same = all(pool is self.pools[0] for pool in self.pools)
        pool_PNC = torch.stack([row_NC.to(hidden_BTC) for row_NC in (pool_NCs[:1] if same else pool_NCs)])
        parts.append(rows_to_kv(model, layer, pool_PNC, torch.arange(N) + 1 + self.num_slots, "read"))
        visible_BTM = None
        if any(len(row_NC) < most for row_NC in long_NCs):
            visible_BTM = torch.ones(B, 1, 1 + most + N, dtype=torch.bool, device=device)
            for b, row_NC in enumerate(long_NCs):
                visible_BTM[b, :, 1 : 1 + most - len(row_NC)] = False
        return KV(_cat([p.key_BGMD for p in parts], B), _cat([p.value_BGMD for p in parts], B), visible_BTM)


def _of_layer(pools: Sequence[Pool], with_keys: bool, layer: int) -> list[Tensor]:
    """Each pool's rows and its search keys, one after the other."""
    return [
        part for pool in pools for part in (pool.row_LNC[layer], *(pool.long.blocks.keys(layer) if with_keys else ()))
    ]


def _kv_of_prompt(kv: KV, b: int) -> KV:
    at = slice(b, b + 1) if len(kv.key_BGMD) > 1 else slice(None)
    return KV(kv.key_BGMD[at], kv.value_BGMD[at], None if kv.visible_BTM is None else kv.visible_BTM[b : b + 1])


def _cat(parts: Sequence[Tensor], B: int) -> Tensor:
    return torch.cat([part.repeat_interleave(B // len(part), 0) for part in parts], dim=2)


def _left_padded(row_NC: Tensor, most: int) -> Tensor:
    return torch.cat([row_NC.new_zeros(most - len(row_NC), row_NC.shape[1]), row_NC])
