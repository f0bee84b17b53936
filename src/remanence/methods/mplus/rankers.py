"""Rankers of long-term memory: the co-trained retriever, and the ones that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from remanence.lm.hidden_states import norm_of, queries, rows_to_kv
from remanence.lm.lm import LM
from remanence.methods.mplus.modules import MPlusModules
from remanence.methods.mplus.pool import Pool
from remanence.methods.mplus.retriever import scores


@dataclass(frozen=True)
class RankerInput:
    """What a ranker sees of one layer: the hidden states that enter its attention; `mask_BT`: 1 where there is text.

    `key_NEs`: the search keys of long-term memory, a block each, where they were fetched ahead; None: read when needed.
    """

    lm: LM
    modules: MPlusModules
    layer: int
    hidden_BTC: Tensor
    mask_BT: Tensor | None
    key_NEs: Sequence[Tensor] | None = None

    def keys(self, pool: Pool) -> Iterable[Tensor]:
        """key_NE of the pool's long-term memory, a block at a time."""
        return pool.long.blocks.keys(self.layer) if self.key_NEs is None else self.key_NEs


Ranker = Callable[[RankerInput, Pool], Tensor]
"""A function that gives score_BM of all rows of a pool's long-term memory, evicted ones included."""


def trained(layer_input: RankerInput, pool: Pool) -> Tensor:
    """score_BM of single rows by the co-trained retriever (M+ §3.2)."""
    query_BTE = layer_input.modules.query[layer_input.layer](layer_input.hidden_BTC)
    parts = [scores(query_BTE, key_NE, layer_input.mask_BT) for key_NE in layer_input.keys(pool)]
    return torch.cat(parts, dim=1)


def by_write(rows: int) -> Ranker:
    """The co-trained retriever for whole writes of `rows` clock ticks each, so that a question retrieves a passage.

    A write's score is the mean over tokens of its best row's sigmoid. Within a write, rows are ordered by their own
    score. Rows of the first pool belong to no text: their score is -inf.
    """

    def ranker(layer_input: RankerInput, pool: Pool) -> Tensor:
        blocks, layer = pool.long.blocks, layer_input.layer
        born_M = blocks.born(layer)
        best = _best(layer_input, layer_input.keys(pool), born_M, pool.long.alive(layer) & (born_M > 0), rows)
        score_BM = best.score_BW[:, best.write_M.to(best.score_BW.device)] + 1e-9 * best.row_BM
        return score_BM.masked_fill((born_M <= 0).to(score_BM.device), -torch.inf)

    return ranker


@dataclass(frozen=True)
class _Best:
    """`score_BW` (float64) of writes, the write of each row, and `row_BM`, the rows' own scores."""

    score_BW: Tensor
    write_M: Tensor
    row_BM: Tensor


def _best(layer_input: RankerInput, keys: Iterable[Tensor], born_M: Tensor, counts_M: Tensor, rows: int) -> _Best:
    """Scores of writes. `counts_M`: rows that count; the others score 0. `keys`: search keys, a block at a time."""
    query_BTE = layer_input.modules.query[layer_input.layer](layer_input.hidden_BTC)
    write_M = (born_M - 1).div(rows, rounding_mode="floor")
    write_M = write_M - write_M.min()
    best_BTW = query_BTE.new_zeros(*query_BTE.shape[:2], int(write_M.max()) + 1, dtype=torch.float32)
    start, parts = 0, []
    for key_NE in keys:
        here = slice(start, start + len(key_NE))
        chance_BTN = (query_BTE @ key_NE.to(query_BTE).T).float().sigmoid() * counts_M[here].to(query_BTE.device)
        index_BTN = write_M[here].to(query_BTE.device).expand_as(chance_BTN)
        best_BTW.scatter_reduce_(2, index_BTN, chance_BTN, "amax")
        parts.append(_masked_mean(chance_BTN, layer_input.mask_BT))
        start = here.stop
    return _Best(_masked_mean(best_BTW, layer_input.mask_BT).double(), write_M, torch.cat(parts, dim=1))


def relevance(layer_input: RankerInput, pool: Pool, rows: int) -> Tensor:
    """score_B, in [0, 1], of the best write for one layer, in the pool and in long-term memory together."""
    long, layer = pool.long, layer_input.layer
    normed_NC = norm_of(layer_input.lm.model, layer)(pool.row_LNC[layer].to(layer_input.hidden_BTC))
    born_NM = torch.cat([pool.born_LN[layer], long.blocks.born(layer)])
    counts_NM = torch.cat([torch.ones(normed_NC.shape[0], dtype=torch.bool), long.alive(layer)]) & (born_NM > 0)
    keys = chain([layer_input.modules.key[layer](normed_NC)], layer_input.keys(pool))
    return _best(layer_input, keys, born_NM, counts_NM, rows).score_BW.amax(1)


def recent(layer_input: RankerInput, pool: Pool) -> Tensor:
    """score_BM: the newest rows first."""
    born_M = pool.long.blocks.born(layer_input.layer)
    return born_M.double().expand(len(layer_input.hidden_BTC), -1)


ATTENDED_ROWS = 4096


def attended(layer_input: RankerInput, pool: Pool) -> Tensor:
    """score_BM: the model's own attention weights, mean over tokens and heads (the paper's ablation M+-Attn).

    Queries and keys are those of position 0, so that a row's place does not count. It takes two passes over blocks of
    rows, one for the softmax's sum and one for the weights, since the weights of all rows at once would not fit.
    """
    hidden_BTC = layer_input.hidden_BTC
    still_T = torch.zeros(hidden_BTC.shape[1], dtype=torch.long, device=hidden_BTC.device)
    query_BHTD = queries(layer_input.lm.model, layer_input.layer, hidden_BTC, still_T, "read")
    sum_BHT1 = query_BHTD.new_full((*query_BHTD.shape[:3], 1), -torch.inf)
    for logit_BHTM in _logits(layer_input, pool, query_BHTD):
        sum_BHT1 = torch.logaddexp(sum_BHT1, logit_BHTM.logsumexp(-1, keepdim=True))
    parts = _logits(layer_input, pool, query_BHTD)
    return torch.cat([_masked_mean((part - sum_BHT1).exp().mean(1), layer_input.mask_BT) for part in parts], dim=1)


def _logits(layer_input: RankerInput, pool: Pool, query_BHTD: Tensor) -> Iterator[Tensor]:
    """logit_BHTM of attention to all rows in long-term memory, a block at a time."""
    blocks, hidden_BTC = pool.long.blocks, layer_input.hidden_BTC
    for start in range(0, blocks.num_rows, ATTENDED_ROWS):
        index_N = torch.arange(start, min(start + ATTENDED_ROWS, blocks.num_rows))
        row_NC = blocks.rows(layer_input.layer, index_N).to(hidden_BTC)
        still_N = torch.zeros(len(index_N), dtype=torch.long, device=hidden_BTC.device)
        key_GND = rows_to_kv(layer_input.lm.model, layer_input.layer, row_NC[None], still_N, "read").key_BGMD[0]
        key_HND = key_GND.repeat_interleave(query_BHTD.shape[1] // len(key_GND), 0)
        yield (query_BHTD @ key_HND.transpose(-1, -2)) * key_GND.shape[-1] ** -0.5


def at_random(seed: int) -> Ranker:
    """score_BM: random numbers, different for each layer."""

    def ranker(layer_input: RankerInput, pool: Pool) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1000 + layer_input.layer)
        return torch.rand(len(layer_input.hidden_BTC), pool.long.blocks.num_rows, generator=generator)

    return ranker


def oracle(born: Callable[[int], Tensor]) -> Ranker:
    """score_BM: rows that were written at the clocks `born(b)` for prompt b first, then the newest: an upper bound."""

    def ranker(layer_input: RankerInput, pool: Pool) -> Tensor:
        born_M = pool.long.blocks.born(layer_input.layer)
        is_own = [torch.isin(born_M, born(b)) for b in range(len(layer_input.hidden_BTC))]
        return torch.stack(is_own).double() + born_M.double() * 1e-12

    return ranker


def _masked_mean(value_BTM: Tensor, mask_BT: Tensor | None) -> Tensor:
    if mask_BT is None:
        return value_BTM.mean(1)
    weight_BT = mask_BT.to(value_BTM) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    return (weight_BT[:, None] @ value_BTM)[:, 0]


def select(pool: Pool, layer: int, score_BM: Tensor, num_rows: int, *, fill: bool) -> list[Tensor]:
    """index_N (int64) for each prompt: the places of the at most `num_rows` rows with the highest scores, oldest first.

    Rows with the score -inf are left out. Of equal ages the later place comes first (the authors' code with a stable
    sort). `fill`: where there are fewer merged rows than `num_rows`, these are repeated and staged rows are not read
    (the authors' code).
    """
    born_M, alive_M = pool.long.blocks.born(layer), pool.long.alive(layer)
    if fill:
        merged = alive_M[: pool.long.num_merged].nonzero().squeeze(1)
        if len(merged) < num_rows:
            tiled = merged.repeat(-(-num_rows // max(1, len(merged))))[-num_rows:] if len(merged) else merged
            return [_by_age(tiled, pool.clock - born_M)] * len(score_BM)
    score_BM = score_BM.cpu().masked_fill(~alive_M, -torch.inf)
    best_BN = score_BM.topk(min(num_rows, int(alive_M.sum())), dim=1).indices.sort(1).values
    read = [index_N[score_M[index_N] > -torch.inf] for index_N, score_M in zip(best_BN, score_BM, strict=True)]
    return [_by_age(index_N, pool.clock - born_M) for index_N in read]


def _by_age(index_N: Tensor, age_M: Tensor) -> Tensor:
    return index_N[age_M[index_N].argsort(stable=True).flip(0)]
