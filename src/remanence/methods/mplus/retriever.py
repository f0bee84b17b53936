"""The co-trained retriever (M+ §3.2): two-layer projectors, scores, and the two losses that can train it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-5


class Projector(nn.Sequential):
    """C -> 2 E -> E with SiLU between and no bias (M+ §3.2; the authors' code)."""

    def __init__(self, width: int, key_width: int, std: float = 0.02) -> None:
        wide, narrow = nn.Linear(width, 2 * key_width, bias=False), nn.Linear(2 * key_width, key_width, bias=False)
        super().__init__(wide, nn.SiLU(), narrow)
        for linear in (wide, narrow):
            nn.init.normal_(linear.weight, std=std)


def scores(query_BTE: Tensor, key_ME: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """score_BM (float32) in (0, 1): mean over a prompt's tokens of sigmoid(q · k) (M+ §3.2).

    `key_ME`, or key_BME for keys of each prompt. `mask_BT`: 1 where there is text.
    """
    chance_BTM = (query_BTE @ key_ME.to(query_BTE).transpose(-1, -2)).float().sigmoid()
    if mask_BT is None:
        return chance_BTM.mean(1)
    weight_BT = mask_BT.to(chance_BTM) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    return (weight_BT[:, None] @ chance_BTM)[:, 0]


def write_scores(query_BTE: Tensor, key_GKE: Tensor, seen_GK: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """score_BG (float32) of whole writes: mean over a prompt's tokens of the best sigmoid(q · k) among a write's rows.

    A row of a passage often holds one word of a question, and seldom all. `seen_GK` (bool): rows that exist; a write
    without any scores 0.
    """
    product_BTM = (query_BTE @ key_GKE.flatten(0, 1).to(query_BTE).T).float()
    product_BTGK = product_BTM.unflatten(-1, seen_GK.shape).masked_fill(~seen_GK, -torch.inf)
    chance_BTG = product_BTGK.amax(-1).sigmoid()
    if mask_BT is None:
        return chance_BTG.mean(1)
    weight_BT = mask_BT.to(chance_BTG) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    return (weight_BT[:, None] @ chance_BTG)[:, 0]


def balanced_loss(score: Tensor, is_own: Tensor, negative_weight: float = 1.0) -> Tensor:
    """The paper's loss (M+ §3.2): mean of -log(score) over own rows, and of -log(1 - score) over all others.

    `is_own` (bool) has the shape of `score`; both means are over all layers and prompts in it, as in the authors' code.
    A mean over nothing is 0.
    """
    zero = score.new_zeros(())
    own, other = score[is_own], score[~is_own]
    positive = -(own + EPSILON).log().mean() if len(own) else zero
    negative = -(1 - other + EPSILON).log().mean() if len(other) else zero
    return (positive + negative_weight * negative) / (1 + negative_weight)


def contrastive_loss(score_BM: Tensor, is_own_BM: Tensor, temperature: float = 1 / 30) -> Tensor:
    """InfoNCE over scores of rows or of whole writes: each own one of a prompt against all others.

    Prompts without own ones do not count.
    """
    ranked_BM = score_BM / temperature
    other_B = ranked_BM.masked_fill(is_own_BM, -torch.inf).logsumexp(-1)
    loss_BM = functional.softplus(other_B[:, None] - ranked_BM)
    return (loss_BM * is_own_BM).sum() / is_own_BM.sum().clamp(min=1)


def projectors(num_layers: int, width: int, key_width: int, std: float = 0.02) -> nn.ModuleList:
    """One `Projector` for each layer."""
    return nn.ModuleList(Projector(width, key_width, std) for _ in range(num_layers))
