"""The share of attention that goes to memory, for single query tokens and as figures of the log."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from remanence.lm.attention import AttentionRecord


def attention_of(shown: AttentionRecord, row_Q: Tensor, position_Q: Tensor) -> Tensor:
    """share_QHS (float32): attention of Q query tokens, at `row_Q` and `position_Q`, to all S keys; 0 to 1.

    `row_Q` and `position_Q` (int64) index the batch and its tokens. The queries of a row are scored together.
    """
    B, H, T, D = shown.query_BHTD.shape
    S, groups = shown.key_BGSD.shape[2], H // shown.key_BGSD.shape[1]
    place_QB = row_Q[:, None] == torch.arange(B, device=row_Q.device)
    slot_Q = place_QB.cumsum(0).gather(1, row_Q[:, None]).squeeze(1) - 1
    position_BK = position_Q.new_zeros(B, int(slot_Q.max()) + 1).index_put((row_Q, slot_Q), position_Q)
    query_BHKD = shown.query_BHTD.gather(2, position_BK[:, None, :, None].expand(-1, H, -1, D))
    score_BHKS = (query_BHKD @ shown.key_BGSD.repeat_interleave(groups, 1).transpose(-1, -2)).float() * shown.scaling
    if shown.mask is None:
        seen_BKS = torch.arange(S, device=position_BK.device) <= position_BK[..., None] + S - T
    else:
        every_BTS = shown.mask[:, 0].expand(B, -1, -1)
        seen_BKS = every_BTS.gather(1, position_BK[..., None].expand(-1, -1, S))
    return score_BHKS.masked_fill(~seen_BKS[:, None], -torch.inf).softmax(-1)[row_Q, :, slot_Q]


def memory_shares(
    records: Mapping[int, AttentionRecord], num_tokens: int, num_lead: int, index_N: Tensor
) -> dict[str, float]:
    """`share_memory_layer_I` of every layer in `records`, 0 to 1: the mean over query heads and positions.

    `index_N` (int64) indexes B·`num_tokens` flattened positions. Memory stands before the tokens, after the first
    `num_lead` columns (`<s>Reference:`, or M+'s first vector), which are attention sinks and do not count.
    """
    if not len(index_N):
        return {}
    shares = {}
    for layer, record in sorted(records.items()):
        share_QHS = attention_of(record, index_N // num_tokens, index_N % num_tokens)
        mass = share_QHS[..., num_lead : share_QHS.shape[-1] - num_tokens].sum(-1).mean()
        shares[f"share_memory_layer_{layer}"] = round(float(mass), 4)
    return shares
