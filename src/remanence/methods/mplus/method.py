"""The method M+ (arXiv 2502.00592): how a chunk becomes rows of the pool, and what a prompt reads of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from remanence.errors import InputError
from remanence.lm.attention import attention_mass
from remanence.lm.capture import capture, capture_hidden
from remanence.lm.decode import pad_left
from remanence.lm.hidden_states import Outputs, make_rows, norm_of, prove_rows, rows_to_kv
from remanence.lm.lm import LM
from remanence.methods.base import MemorySource, Method, Prompt, Reading
from remanence.methods.mplus import dropping
from remanence.methods.mplus.bank_pool import BankPool
from remanence.methods.mplus.blocks import Blocks, Place
from remanence.methods.mplus.config import MPlusConfig, check_capacity
from remanence.methods.mplus.longterm import Keeping, LongTerm
from remanence.methods.mplus.modules import MPlusModules
from remanence.methods.mplus.pool import Pool, PoolHistory, replaced, seeded
from remanence.methods.mplus.prefix import PoolPrefix
from remanence.methods.mplus.rankers import Ranker, RankerInput, by_write, relevance, trained
from remanence.methods.mplus.retriever import scores
from remanence.types import Hit, LayerPrefix

if TYPE_CHECKING:
    from remanence.bank import Bank

MOST_RECALLED = 5
LEAST_SHARE, LEAST_OF_BEST = 0.01, 0.25
"""A reply names at most so many chunks, and none with a smaller share, or less than this part of the largest share."""
NOT_IN_FINGERPRINT = ("offload", "small_prefix")
"""Settings that say only where rows and readings are held: a pool is the same under all of them."""


def _trained(lm: LM) -> MPlusConfig:
    """The paper's settings; `methods.load` replaces those that the model was trained with."""
    if lm.latent is None:
        raise InputError(
            f"model {lm.name!r} has no latent memory",
            'use "nano-mplus", a model trained with `remanence train nano-mplus`, or method "memory3"',
        )
    return MPlusConfig()


class MPlus(Method):
    """M+ (https://arxiv.org/abs/2502.00592): writes by self-update (§3.1), reads the pool and retrieved rows (§3.2).

    One object serves one model.
    """

    name: ClassVar[str] = "mplus"
    presets: ClassVar = {"trained": _trained}
    writes_tensors: ClassVar[bool] = False
    searches: ClassVar[bool] = False
    role: ClassVar[str | None] = "read"
    config: MPlusConfig

    def __init__(self, config: MPlusConfig, modules: MPlusModules | None = None) -> None:
        super().__init__(config)
        self._modules = modules

    def reference_tokens(self) -> int:
        return self.config.chunk_tokens

    def modules(self, lm: LM) -> MPlusModules:
        """The trained parts for `lm`: those of the model folder, or new ones to train.

        Raises UnsupportedModel, with the measured error, where rows cannot be read exactly.
        """
        if self._modules is None:
            prove_rows(lm.model)
            c = self.config
            self._modules = MPlusModules.beside(lm, c.key_width, c.pool_rows)
        if len(self._modules.pool_LNC[0]) != self.config.pool_rows:
            raise InputError(
                f"these modules begin with a pool of {len(self._modules.pool_LNC[0])} rows",
                f"the settings ask for {self.config.pool_rows} (write_rows x pool_blocks): change one of the two",
            )
        return self._modules

    def fingerprint(self, lm: LM) -> str:
        """SHA-256 (hex): a pool is valid for exactly this model, its adapters, these modules and this config."""
        settings = {
            name: value
            for name, value in self.describe().items()
            if name not in NOT_IN_FINGERPRINT and value is not None  # None: as if there were no such setting
        }
        text = json.dumps([lm.fingerprint, str(lm.dtype), settings], sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for name, tensor in sorted(self.modules(lm).state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def open_state(self, lm: LM, bank: Bank, seed: int) -> BankPool:
        """See `Method.open_state`: the pool that has read the bank's texts."""
        return BankPool(lm, self, bank, seed)

    # -- writing ---------------------------------------------------------------------------------------------

    def fresh(self, lm: LM, seed: int = 0, folder: Path | None = None) -> Pool:
        """The pool before the first write. `folder`: where long-term memory is stored; None: in RAM."""
        c, L, C = self.config, lm.dims.num_layers, lm.dims.width
        blocks = Blocks(Place(c.precision, folder), L, C, c.key_width)
        capacity_rows = c.capacity_rows if c.capacity_bytes is None else c.capacity_bytes // blocks.bytes_of_row
        check_capacity(capacity_rows, c.write_rows, c.merge_writes)
        merge_rows = min(c.merge_writes * c.write_rows, max(c.write_rows, capacity_rows // 2))
        keeping = Keeping(c.eviction, capacity_rows, merge_rows, c.initial_frequency, c.decay, c.long_slots)
        row_LNC = self.modules(lm).pool_LNC.to("cpu" if c.offload else lm.device, lm.dtype)
        born_LN = torch.arange(-c.pool_rows, 0).expand(L, -1) + 1
        return Pool(row_LNC, born_LN, 0, self.modules(lm).first_long(LongTerm.empty(keeping, blocks)), seeded(seed))

    def encode(self, lm: LM, last_BLKC: Tensor, chunks: Sequence[Sequence[int]]) -> Tensor:
        """row_BLKC that the chunks become, each read behind the last K rows of its pool (M+ §3.1); gradients flow.

        `last_BLKC`: these rows. A chunk of T tokens has the positions K + 1, K + 2 ... With T < K, the last K - T rows
        of the pool are run again with the chunk and become its first new rows (the authors' code).
        """
        K, device = self.config.write_rows, lm.device
        before_B = torch.tensor([max(0, K - len(chunk)) for chunk in chunks], device=device)
        live = [[0] * max(0, K - len(chunk)) + list(chunk) for chunk in chunks]
        num_live_B = torch.tensor([len(ids) for ids in live], device=device)
        T = max(map(len, live))
        ids_BT = torch.tensor([ids + [0] * (T - len(ids)) for ids in live], device=device)
        outputs = Outputs(
            num_live_B[:, None] - K + torch.arange(K, device=device),
            lm.dims.num_layers,
            added_C=self.modules(lm).mark_C,
        )
        if before_B.any():
            outputs.is_front_BT = torch.arange(T, device=device) < before_B[:, None]
            outputs.front_LBTC = _moved(last_BLKC, before_B, T)
        positions_BT = (1 + K - before_B)[:, None] + torch.arange(T, device=device)
        return make_rows(lm.model, ids_BT, positions_BT, outputs, self._front(lm, last_BLKC, K - before_B), "write")

    def _front(self, lm: LM, row_BLMC: Tensor, num_seen_B: Tensor | None = None) -> LayerPrefix:
        """`[first vector; rows]` of every layer as keys and values, at positions 0, 1, 2 ...

        `num_seen_B`: a chunk sees only the first so many of its M rows.
        """
        B, _, M, _ = row_BLMC.shape
        bos_LC, at_M = self.modules(lm).bos_LC.to(row_BLMC), torch.arange(M + 1, device=lm.device)
        visible_B1M = None
        if num_seen_B is not None and bool((num_seen_B < M).any()):
            visible_B1M = (at_M <= num_seen_B[:, None])[:, None]
        kvs = []
        for layer in range(lm.dims.num_layers):
            rows_BMC = torch.cat([bos_LC[layer].expand(B, 1, -1), row_BLMC[:, layer]], dim=1)
            kvs.append(replace(rows_to_kv(lm.model, layer, rows_BMC, at_M, "write"), visible_BTM=visible_B1M))
        return LayerPrefix(tuple(kvs), M + 1)

    def add(self, lm: LM, pool: Pool, ids: Sequence[int]) -> Pool:
        """`pool` after it has read one chunk of 1 to `chunk_tokens` tokens (M+ §3.1); `pool` never changes."""
        self._check(lm, ids)
        K = self.config.write_rows
        with torch.no_grad():
            fresh_LKC = self.encode(lm, pool.row_LNC[None, :, -K:].to(lm.device), [ids])[0]
            if self.config.short == "own":
                fresh_LKC = fresh_LKC[:, -len(ids) :]
            return self.take(lm, pool, fresh_LKC)

    def take(self, lm: LM, pool: Pool, fresh_LKC: Tensor) -> Pool:
        """`pool` after a write of `fresh_LKC`: the rows that the drop policy selects enter long-term memory."""
        generator = pool.generator()
        full = dropping.Full(lm, self.modules(lm), pool.row_LNC, fresh_LKC, generator)
        dropped_LK = dropping.policy(self.config.drop)(full)
        return self.exchange(lm, pool, fresh_LKC, dropped_LK, generator.get_state())

    def exchange(self, lm: LM, pool: Pool, fresh_LKC: Tensor, dropped_LK: Tensor, random: Tensor | None = None) -> Pool:
        """`pool` after a write that drops the rows at `dropped_LK`; `random`: the new state of its generator."""
        if (len(fresh_LKC), fresh_LKC.shape[2]) != (len(pool.row_LNC), pool.row_LNC.shape[2]):
            shapes = f"{tuple(fresh_LKC.shape)} for a pool of {tuple(pool.row_LNC.shape)}"
            raise InputError(
                f"rows of the shape {shapes} are of another model", "give (layers, rows, width) of this one"
            )
        key_LKE = self.search_keys(lm, pool.row_LNC, dropped_LK)
        after = replaced(pool, fresh_LKC, dropped_LK, key_LKE, ages=self.config.ages, ticks=self.config.write_rows)
        return after if random is None else replace(after, random=random)

    def search_keys(self, lm: LM, row_LNC: Tensor, index_LK: Tensor) -> Tensor:
        """key_LKE: search keys of the rows at `index_LK`, projected after the layer's own norm (M+ §3.2)."""
        modules = self.modules(lm)
        return torch.stack(
            [
                modules.key[layer](norm_of(lm.model, layer)(row_LNC[layer, index_LK[layer].to(row_LNC.device)]))
                for layer in range(len(row_LNC))
            ]
        )

    def reader_scores(
        self, lm: LM, row_BLNC: Tensor, hidden: Mapping[int, Tensor], mask_BT: Tensor | None = None, detach: bool = True
    ) -> Tensor:
        """score_BLN of pool rows for training the retriever (M+ §3.2); `hidden`: what entered each layer's attention.

        `detach`: only the projectors learn from it, as the authors have it; else the writer and the reader do too.
        """
        modules = self.modules(lm)
        normed = self._normed(lm, row_BLNC, detach)
        hidden_Ls = [hidden[i].detach() if detach else hidden[i] for i in range(len(normed))]
        pairs = zip(modules.query, modules.key, hidden_Ls, normed, strict=True)
        return torch.stack([scores(query(q), key(h), mask_BT) for query, key, q, h in pairs], dim=1)

    def writer_scores(self, lm: LM, row_BLNC: Tensor, detach: bool = True) -> Tensor:
        """score_BLN of pool rows for the last K of them: the writer's retriever."""
        modules, K = self.modules(lm), self.config.write_rows
        pairs = zip(modules.encoder_query, modules.key, self._normed(lm, row_BLNC, detach), strict=True)
        return torch.stack([scores(query(h[:, -K:]), key(h)) for query, key, h in pairs], dim=1)

    def _normed(self, lm: LM, row_BLNC: Tensor, detach: bool) -> list[Tensor]:
        normed = [norm_of(lm.model, layer)(row_BNC) for layer, row_BNC in enumerate(row_BLNC.unbind(1))]
        return [h.detach() for h in normed] if detach else normed

    def _check(self, lm: LM, ids: Sequence[int]) -> None:
        if not 1 <= len(ids) <= self.config.chunk_tokens:
            raise InputError(
                f"a chunk has {len(ids)} tokens", f"a write takes 1 to {self.config.chunk_tokens}: split the text"
            )
        if odd := [i for i in ids if not 0 <= i < lm.dims.vocab_size]:
            raise InputError(
                f"token id {odd[0]} is not in the vocabulary of {lm.name}", f"ids are 0 to {lm.dims.vocab_size - 1}"
            )

    # -- reading ---------------------------------------------------------------------------------------------

    def is_about(self, lm: LM, memory_source: MemorySource, prompts: Sequence[Prompt]) -> list[bool]:
        """See `Method.is_about` and `MPlusConfig.least_relevance`."""
        if not self.config.least_relevance:
            return [True] * len(prompts)
        return self.knows(lm, _history(memory_source).pool, [_without_bos(lm, prompt.ids) for prompt in prompts])

    @torch.no_grad()
    def knows(self, lm: LM, pool: Pool, prompts: Sequence[Sequence[int]]) -> list[bool]:
        """Whether a pool holds something that each prompt (tokens without BOS) is about; see `least_relevance`."""
        return [score >= self.config.least_relevance for score in self.relevance(lm, pool, prompts)]

    @torch.no_grad()
    def relevance(self, lm: LM, pool: Pool, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Of each layer's best write, mean over layers, 0 to 1; one pass over the prompts with the pool read."""
        ids_BT, mask_BT = pad_left(prompts, lm.device)
        prefix, L = self.prefix(lm, [pool], mask_BT), lm.dims.num_layers
        positions_BT = prefix.offset_tokens + (mask_BT.cumsum(-1) - 1).clamp(min=0)
        hidden = capture_hidden(lm.model, ids_BT, frozenset(range(L)), positions_BT, mask_BT, prefix, self.role)
        modules, K = self.modules(lm), self.config.write_rows
        inputs = [RankerInput(lm, modules, layer, hidden[layer], mask_BT) for layer in range(L)]
        return torch.stack([relevance(one, pool, K) for one in inputs]).mean(0).tolist()

    def read(self, lm: LM, memory_source: MemorySource, prompts: Sequence[Prompt]) -> Reading:
        """Reads once, when the prompts are run; the answers see the same memory (M+ §3.1).

        The pool has its own first vector, so that the prompts lose their BOS. `attribute` adds the groups.
        """
        pool = _history(memory_source).pool
        ids = tuple(_without_bos(lm, prompt.ids) for prompt in prompts)
        mask_BT = pad_left(ids, lm.device)[1]
        prefix = self.prefix(lm, [pool], mask_BT)
        num_rows = self.config.pool_rows + min(self.config.long_slots, pool.long.blocks.num_rows)
        return Reading(ids, prefix, prefix, tuple(((0, ()),) for _ in ids), (num_rows,) * len(ids))

    @torch.no_grad()
    def attention_shares(
        self, lm: LM, memory_source: MemorySource, reading: Reading, sequences: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """Attention to the rows of each chunk: mean over layers, heads, and the tokens that predict the answer."""
        history = _history(memory_source)
        return [self._shares_of(lm, history, reading, b, ids) for b, ids in enumerate(sequences)]

    def _shares_of(
        self, lm: LM, history: PoolHistory, reading: Reading, b: int, ids: Sequence[int]
    ) -> dict[str, float]:
        prefix, first = reading.prefix, len(reading.prompts[b]) - 1
        if (
            not isinstance(prefix, PoolPrefix)
            or not history.writes
            or self.config.ages == "reference"
            or len(ids) - 1 <= first
        ):
            return {}
        ids_BT = torch.tensor([ids[:-1]], device=lm.device)
        positions_BT = prefix.offset_tokens + torch.arange(len(ids) - 1, device=lm.device)[None]
        layers = frozenset(range(lm.dims.num_layers))
        records = capture(
            lm.model, ids_BT, layers, positions_BT=positions_BT, memory=prefix.of_prompt(b), role=self.role
        )
        mass_W = torch.zeros(len(history.writes) + 1)
        for layer, record in records.items():
            born_M = prefix.born(b, layer)
            mass_W.index_add_(0, history.write_of(born_M) + 1, attention_mass(record, first)[: len(born_M)].cpu())
        shares: dict[str, float] = {}
        for write, mass in zip(history.writes, (mass_W[1:] / len(records)).tolist(), strict=True):
            shares |= {id: shares.get(id, 0.0) + mass / len(write.ids) for id in write.ids if mass > 0}
        return shares

    def attribute(self, memory_source: MemorySource, reading: Reading, shares: Sequence[dict[str, float]]) -> Reading:
        """`reading` with the chunks that the answers attended to most; a hit's score is its share."""
        groups = []
        for share_of in shares:
            best = sorted(share_of, key=lambda id: -share_of[id])[:MOST_RECALLED]
            least = max(LEAST_SHARE, LEAST_OF_BEST * share_of[best[0]]) if best else LEAST_SHARE
            chunks = memory_source.chunks([id for id in best if share_of[id] >= least])
            groups.append(((0, tuple(Hit(chunk, min(1.0, share_of[chunk.id])) for chunk in chunks)),))
        return replace(reading, groups=tuple(groups))

    def prefix(
        self, lm: LM, pools: Sequence[Pool], mask_BT: Tensor | None = None, ranker: Ranker | None = None
    ) -> PoolPrefix:
        """What a batch reads of one pool, or of one for each prompt. `mask_BT`: 1 where there is text.

        `ranker`: scores the rows of long-term memory; None: the co-trained retriever.
        """
        if ranker is None:
            ranker = trained if self.config.ranked == "rows" else by_write(self.config.write_rows)
        c, modules = self.config, self.modules(lm)
        fill, prefetch = c.eviction == "reference", lm.device.type != "cpu"
        return PoolPrefix(
            lm, modules, pools, c.long_slots, ranker, mask_BT, fill, small=c.small_prefix, prefetch=prefetch
        )

    def alone(self, lm: LM, row_BLKC: Tensor) -> LayerPrefix:
        """The prefix `[first vector; K rows]` of fresh rows alone, with the writer's adapter (the authors' code)."""
        return self._front(lm, row_BLKC)


def _history(memory_source: MemorySource) -> PoolHistory:
    history = memory_source.state()
    assert isinstance(history, PoolHistory), "MPlus.open_state returns a BankPool"
    return history


def _without_bos(lm: LM, ids: tuple[int, ...]) -> tuple[int, ...]:
    return ids[len(lm.bos) :] if list(ids[: len(lm.bos)]) == lm.bos else ids


def _moved(last_BLKC: Tensor, before_B: Tensor, T: int) -> Tensor:
    """row_LBTC: the last `before_B[b]` rows of chunk b come first; what follows is never read."""
    B, L, K, C = last_BLKC.shape
    at_BT = (K - before_B[:, None] + torch.arange(T, device=last_BLKC.device)).clamp(max=K - 1)
    return last_BLKC.gather(2, at_BT[:, None, :, None].expand(B, L, T, C)).transpose(0, 1)
