"""M+ (arXiv 2502.00592): a pool of hidden rows that the model rewrites as it reads, and a long-term memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from remanence.errors import InputError
from remanence.lm.attention import attention_mass
from remanence.lm.decode import pad_left
from remanence.lm.hidden_states import Outputs, make_rows, norm_of, prove_rows, rows_to_kv
from remanence.lm.lm import LM
from remanence.lm.proof import LayerPrefix, capture, watch
from remanence.methods.base import MemorySource, Method, Prompt, Reading
from remanence.methods.mplus import dropping
from remanence.methods.mplus.blocks import Blocks, Place, Precision
from remanence.methods.mplus.history import PoolHistory
from remanence.methods.mplus.longterm import Eviction, Keeping, LongTerm
from remanence.methods.mplus.modules import MPlusModules
from remanence.methods.mplus.pool import Ages, Pool, replaced, seeded
from remanence.methods.mplus.prefix import PoolPrefix
from remanence.methods.mplus.rankers import Asked, Choice, by_write, relevance, trained
from remanence.methods.mplus.retriever import scores
from remanence.types import Hit

SHOWN = 5
LEAST_SHARE, LEAST_OF_BEST = 0.01, 0.25
"""An answer names so many texts at most: none that got less of its attention, nor so much less than the first."""
HOLDING = ("offload", "small_prefix")
"""Settings that say where rows and what was read are held; a pool is the same under all of them."""


@dataclass(frozen=True)
class MPlusConfig:
    """The paper's choices (M+ §3, App. E). A write makes `write_rows` rows (K) per layer of up to `chunk_tokens`.

    The pool holds `pool_blocks` times as many (N), a reading adds `long_blocks` times as many (K0) from long-term
    memory, of at most `capacity_rows`, or `capacity_bytes` where that is given. `eviction`, `ages`: "reference" is the
    authors' code, with what it gets wrong. `ranked`: what the retriever looks for, single rows (the paper) or whole
    writes. `short`: a chunk of fewer tokens than K makes K rows, the first of them from rows of the pool (the authors'
    code), or only as many as it has tokens.
    `least_relevance`: where each layer's best write scores less for a prompt (mean over layers), the base model
    answers alone, as if nothing had been written; 0 (the paper): every prompt reads.
    `offload`: the pool is in RAM, and a layer's rows go to the accelerator while the layer before it computes.
    `small_prefix`: the keys and values that were read are held as int8.
    """

    chunk_tokens: int = 512
    min_chunk_tokens: int = 16
    write_rows: int = 256
    pool_blocks: int = 40
    long_blocks: int = 10
    key_width: int = 256
    capacity_rows: int = 153_600
    capacity_bytes: int | None = None
    merge_writes: int = 60
    eviction: Eviction = "age"
    ages: Ages = "true"
    initial_frequency: float = 10.0
    decay: float = 1.0
    drop: str = "random"
    ranked: Literal["rows", "writes"] = "rows"
    short: Literal["reference", "own"] = "reference"
    least_relevance: float = 0.0
    precision: Precision = "bfloat16"
    offload: bool = False
    small_prefix: bool = False

    def __post_init__(self) -> None:
        dropping.policy(self.drop)
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} is {getattr(self, name)!r}", f"use one of {', '.join(get_args(kind))}")
        if self.ages == "reference" and (self.ranked == "writes" or self.least_relevance):
            raise InputError(
                'ages="reference" do not say which write a row is of',
                'use ages="true" with ranked="writes" or least_relevance',
            )
        _check_capacity(self.capacity_rows, self.write_rows, self.merge_writes)

    @property
    def pool_rows(self) -> int:
        return self.write_rows * self.pool_blocks

    @property
    def long_slots(self) -> int:
        return self.write_rows * self.long_blocks


def _check_capacity(capacity_rows: int, write_rows: int, merge_writes: int) -> None:
    if capacity_rows < write_rows:
        raise InputError(
            f"a long-term memory of {capacity_rows} rows cannot take the {write_rows} rows of one write",
            f"give it room for {write_rows} rows or more; {write_rows * merge_writes} suit it",
        )


def _trained(lm: LM) -> MPlusConfig:
    """Where a model was trained for it, `methods.load` gives the settings that it was trained with."""
    if lm.latent is None:
        raise InputError(
            f"model {lm.name!r} has no latent memory",
            'use "nano-mplus", a model trained with `remanence train nano-mplus`, or method "memory3"',
        )
    return MPlusConfig()


class MPlus(Method):
    """Writes by self-update (MemoryLLM), reads the pool and what its retriever finds (M+ §3.2).

    One object serves one model.
    """

    name: ClassVar[str] = "mplus"
    presets: ClassVar = {"trained": _trained}
    writes_tensors: ClassVar[bool] = False
    reads_pool: ClassVar[bool] = True
    role: ClassVar[str | None] = "read"
    config: MPlusConfig

    def __init__(self, config: MPlusConfig, modules: MPlusModules | None = None) -> None:
        super().__init__(config)
        self._modules = modules

    def reference_tokens(self) -> int:
        return self.config.chunk_tokens

    def modules(self, lm: LM) -> MPlusModules:
        """What this method has trained for `lm`: the model folder's, or a start for training.

        Raises UnsupportedModel, with the measured error, where hidden rows cannot be read exactly.
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
        told = self.describe().items()  # a setting that is None is as if there were none
        settings = {name: value for name, value in told if name not in HOLDING and value is not None}
        text = json.dumps([lm.fingerprint, str(lm.dtype), settings], sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for name, tensor in sorted(self.modules(lm).state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    # -- writing ---------------------------------------------------------------------------------------------

    def fresh(self, lm: LM, seed: int = 0, folder: Path | None = None) -> Pool:
        """The pool before the first write. `folder`: where rows of long-term memory are kept; None in RAM."""
        c, L, C = self.config, lm.dims.num_layers, lm.dims.width
        blocks = Blocks(Place(c.precision, folder), L, C, c.key_width)
        capacity_rows = c.capacity_rows if c.capacity_bytes is None else c.capacity_bytes // blocks.bytes_of_row
        _check_capacity(capacity_rows, c.write_rows, c.merge_writes)
        merge_rows = min(c.merge_writes * c.write_rows, max(c.write_rows, capacity_rows // 2))
        keeping = Keeping(c.eviction, capacity_rows, merge_rows, c.initial_frequency, c.decay, c.long_slots)
        row_LNC = self.modules(lm).pool_LNC.to("cpu" if c.offload else lm.device, lm.dtype)
        born_LN = torch.arange(-c.pool_rows, 0).expand(L, -1) + 1
        return Pool(row_LNC, born_LN, 0, self.modules(lm).first_long(LongTerm.empty(keeping, blocks)), seeded(seed))

    def encode(self, lm: LM, last_BLKC: Tensor, chunks: Sequence[Sequence[int]]) -> Tensor:
        """row_BLKC that chunks become, each given the last K rows of its pool (authors' code); gradients flow.

        A chunk of T tokens stands at K + 1 ...; with T < K, the last K - T rows of the pool are live too and
        become its first new rows.
        """
        K, device = self.config.write_rows, lm.device
        before_B = torch.tensor([max(0, K - len(chunk)) for chunk in chunks], device=device)
        live = [[0] * max(0, K - len(chunk)) + list(chunk) for chunk in chunks]
        num_live_B = torch.tensor([len(row) for row in live], device=device)
        T = max(map(len, live))
        ids_BT = torch.tensor([row + [0] * (T - len(row)) for row in live], device=device)
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

        `num_seen_B`: of a row's M rows only the first so many are seen.
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
        """`pool` after it has read one chunk of 1 to `chunk_tokens` tokens; what was given is as it was."""
        self._check(lm, ids)
        K = self.config.write_rows
        with torch.no_grad():
            fresh_LKC = self.encode(lm, pool.row_LNC[None, :, -K:].to(lm.device), [ids])[0]
            if self.config.short == "own":
                fresh_LKC = fresh_LKC[:, -len(ids) :]
            return self.take(lm, pool, fresh_LKC)

    def take(self, lm: LM, pool: Pool, fresh_LKC: Tensor) -> Pool:
        """`pool` with the rows of a chunk in it, and what they displace in long-term memory."""
        generator = pool.generator()
        full = dropping.Full(lm, self.modules(lm), pool.row_LNC, fresh_LKC, generator)
        dropped_LK = dropping.policy(self.config.drop)(full)
        return self.exchange(lm, pool, fresh_LKC, dropped_LK, generator.get_state())

    def exchange(self, lm: LM, pool: Pool, fresh_LKC: Tensor, dropped_LK: Tensor, random: Tensor | None = None) -> Pool:
        """As `take`, for rows to drop that are given; `random`: the generator's state afterwards."""
        if (len(fresh_LKC), fresh_LKC.shape[2]) != (len(pool.row_LNC), pool.row_LNC.shape[2]):
            shapes = f"{tuple(fresh_LKC.shape)} for a pool of {tuple(pool.row_LNC.shape)}"
            raise InputError(
                f"rows of the shape {shapes} are of another model", "give (layers, rows, width) of this one"
            )
        key_LKE = self.search_keys(lm, pool.row_LNC, dropped_LK)
        after = replaced(pool, fresh_LKC, dropped_LK, key_LKE, ages=self.config.ages, ticks=self.config.write_rows)
        return after if random is None else replace(after, random=random)

    def search_keys(self, lm: LM, row_LNC: Tensor, index_LK: Tensor) -> Tensor:
        """key_LKE of chosen rows: the key projector on what the layer's own norm makes of them (M+ §3.2)."""
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
        asked = [hidden[i].detach() if detach else hidden[i] for i in range(len(normed))]
        pairs = zip(modules.query, modules.key, asked, normed, strict=True)
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

    def is_about(self, lm: LM, recall: MemorySource, prompts: Sequence[Prompt]) -> list[bool]:
        if not self.config.least_relevance:
            return [True] * len(prompts)
        return self.knows(lm, recall.pool().pool, [_without_bos(lm, prompt.ids) for prompt in prompts])

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
        seen = watch(lm.model, ids_BT, frozenset(range(L)), positions_BT, mask_BT, prefix, self.role)
        modules, K = self.modules(lm), self.config.write_rows
        asked = [Asked(lm, modules, layer, seen[layer], mask_BT) for layer in range(L)]
        return torch.stack([relevance(one, pool, K) for one in asked]).mean(0).tolist()

    def read(self, lm: LM, recall: MemorySource, prompts: Sequence[Prompt]) -> Reading:
        """Once, at prefill; frozen while an answer is generated (M+ §3.1).

        The pool has its own first vector, so no BOS. What was read is known afterwards: see `told`.
        """
        kept = recall.pool()
        ids = tuple(_without_bos(lm, prompt.ids) for prompt in prompts)
        mask_BT = pad_left(ids, lm.device)[1]
        prefix = self.prefix(lm, [kept.pool], mask_BT)
        num_rows = self.config.pool_rows + min(self.config.long_slots, kept.pool.long.blocks.num_rows)
        return Reading(ids, prefix, prefix, tuple(((0, ()),) for _ in ids), (num_rows,) * len(ids))

    @torch.no_grad()
    def shares(
        self, lm: LM, recall: MemorySource, reading: Reading, rows: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """Attention on the rows that each text became: mean over layers, heads, and tokens that predict the answer."""
        return [self._share(lm, recall.pool(), reading, i, row) for i, row in enumerate(rows)]

    def _share(self, lm: LM, kept: PoolHistory, reading: Reading, i: int, row: Sequence[int]) -> dict[str, float]:
        prefix, first = reading.prefix, len(reading.prompts[i]) - 1
        if (
            not isinstance(prefix, PoolPrefix)
            or not kept.writes
            or self.config.ages == "reference"
            or len(row) - 1 <= first
        ):
            return {}
        ids_BT = torch.tensor([row[:-1]], device=lm.device)
        positions_BT = prefix.offset_tokens + torch.arange(len(row) - 1, device=lm.device)[None]
        layers = frozenset(range(lm.dims.num_layers))
        seen = capture(lm.model, ids_BT, layers, positions_BT=positions_BT, memory=prefix.row(i), role=self.role)
        mass_W = torch.zeros(len(kept.writes) + 1)
        for layer, shown in seen.items():
            born_M = prefix.born(i, layer)
            mass_W.index_add_(0, kept.write_of(born_M) + 1, attention_mass(shown, first)[: len(born_M)].cpu())
        shares: dict[str, float] = {}
        for write, mass in zip(kept.writes, (mass_W[1:] / len(seen)).tolist(), strict=True):
            shares |= {id: shares.get(id, 0.0) + mass / len(write.ids) for id in write.ids if mass > 0}
        return shares

    def told(self, recall: MemorySource, reading: Reading, shares: Sequence[dict[str, float]]) -> Reading:
        """Of the texts whose rows were read, those that the answer attended to most."""
        groups = []
        for row in shares:
            best = sorted(row, key=lambda id: -row[id])[:SHOWN]
            least = max(LEAST_SHARE, LEAST_OF_BEST * row[best[0]]) if best else LEAST_SHARE
            chunks = recall.chunks([id for id in best if row[id] >= least])
            groups.append(((0, tuple(Hit(chunk, min(1.0, row[chunk.id])) for chunk in chunks)),))
        return replace(reading, groups=tuple(groups))

    def prefix(
        self, lm: LM, pools: Sequence[Pool], mask_BT: Tensor | None = None, choice: Choice | None = None
    ) -> PoolPrefix:
        """What a batch reads: of one pool, or of one for each row. `mask_BT`: 1 where there is text.

        `choice`: what is read of long-term memory; None for the co-trained retriever.
        """
        if choice is None:
            choice = trained if self.config.ranked == "rows" else by_write(self.config.write_rows)
        c, modules = self.config, self.modules(lm)
        fill, ahead = c.eviction == "reference", lm.device.type != "cpu"
        return PoolPrefix(lm, modules, pools, c.long_slots, choice, mask_BT, fill, small=c.small_prefix, ahead=ahead)

    def alone(self, lm: LM, row_BLKC: Tensor) -> LayerPrefix:
        """Fresh rows read by themselves, `[first vector; K rows]`, with the writer's adapter (their "two-chunk")."""
        return self._front(lm, row_BLKC)


def _without_bos(lm: LM, ids: tuple[int, ...]) -> tuple[int, ...]:
    return ids[len(lm.bos) :] if list(ids[: len(lm.bos)]) == lm.bos else ids


def _moved(last_BLKC: Tensor, before_B: Tensor, T: int) -> Tensor:
    """row_LBTC: of row b the last `before_B[b]` rows come first; the rest is never looked at."""
    B, L, K, C = last_BLKC.shape
    at_BT = (K - before_B[:, None] + torch.arange(T, device=last_BLKC.device)).clamp(max=K - 1)
    return last_BLKC.gather(2, at_BT[:, None, :, None].expand(B, L, T, C)).transpose(0, 1)
