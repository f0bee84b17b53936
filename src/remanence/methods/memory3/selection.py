"""Which tokens of a reference are kept: those that its other tokens attend to most (Memory³ §3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_received(
    query_BHTD: Tensor, key_BGTD: Tensor, real_BT: Tensor, scaling: float, selection: str = "softmax"
) -> Tensor:
    """w_BGT, float32: attention that each token gets from all tokens, without RoPE and causal mask (§3.3).

    Summed over the query heads of a group. "exp" drops the softmax's denominator and stays in logarithms,
    which keeps the order. Padding gets -inf.
    """
    B, H, T, D = query_BHTD.shape
    G = key_BGTD.shape[1]
    query_BGRTD = query_BHTD.float().reshape(B, G, H // G, T, D)
    with torch.autocast(query_BHTD.device.type, enabled=False):  # autocast would round, and rounding makes ties
        score_BGRTS = query_BGRTD @ key_BGTD.float()[:, :, None].transpose(-1, -2) * scaling
    score_BGRTS = score_BGRTS.masked_fill(~real_BT[:, None, None, None, :], -math.inf)
    from_real = real_BT[:, None, None, :, None]
    if selection == "exp":
        score_BGRTS = score_BGRTS.masked_fill(~from_real, -math.inf)
        weight_BGT = score_BGRTS.flatten(2, 3).logsumexp(2)
    else:
        weight_BGT = (score_BGRTS.softmax(-1) * from_real).sum(dim=(2, 3))
    return weight_BGT.masked_fill(~real_BT[:, None, :], -math.inf)


TIE = 1e-5
"""Weights closer than this are equal: a repeated token weighs the same in the first layer, up to rounding."""


def select(weight_BGT: Tensor, real_BT: Tensor, kept_tokens: int | None) -> Tensor:
    """index_BGN of the `kept_tokens` heaviest real tokens in text order; ties go to the earlier; -1 fills up.

    N is `kept_tokens`, or T when it is None.
    """
    T = weight_BGT.shape[-1]
    N = T if kept_tokens is None else kept_tokens
    value_BGT, order_BGT = weight_BGT.sort(dim=-1, descending=True, stable=True)
    is_less = value_BGT[..., :-1] - value_BGT[..., 1:] > TIE * value_BGT[..., :-1].abs().clamp(min=1)
    rank_BGT = torch.nn.functional.pad(is_less.cumsum(-1), (1, 0))
    index_BGN = order_BGT.gather(-1, (rank_BGT * T + order_BGT).argsort(-1))[..., :N]
    is_real = real_BT[:, None].expand_as(weight_BGT).gather(-1, index_BGN)
    index_BGN = index_BGN.masked_fill(~is_real, T).sort(dim=-1).values
    index_BGN = index_BGN.masked_fill(index_BGN == T, -1)
    return torch.nn.functional.pad(index_BGN, (0, N - index_BGN.shape[-1]), value=-1)


def take(tensor_BGTD: Tensor, index_BGN: Tensor) -> Tensor:
    return tensor_BGTD.gather(2, index_BGN.clamp(min=0)[..., None].expand(-1, -1, -1, tensor_BGTD.shape[-1]))
