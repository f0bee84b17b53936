"""Starts a model with the two circuits of copying in place: what stood before this token, and what came after it.

Training finds them by itself, but late: on two CPU cores 1,300 steps from random weights copied 3 % of random
tokens, these weights copy 63 % before the first step. The first half of the heads of layer 0 look one token
back and keep what they see in directions of their own; the same heads of layer 1 look for the token that
followed the present one, and copy it (induction heads: Olsson et al., arXiv 2209.11895). All other heads look
for tokens like the present one. Everything is trained from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remanence.train.shapes import ROPE_THETA


@dataclass(frozen=True)
class CircuitConfig:
    """Sizes of the starting weights, in units of the residual stream.

    `constant` is the share of every embedding that is the same for all tokens: what the look-back heads
    hold on to, `meaning` the share of the rest's variance that is word vectors. `slow`: rotary pairs that turn by
    less than this from token to token (radians) do not disturb a match. `gain`: of normalised queries and keys (QK
    norm) in the two layers that copy, where it stands in for `look_back` and `match`: at nano's shape 56 % of random
    tokens are copied so, 47 % without QK norm, none with a gain of 1.
    """

    embedding_std: float = 0.1
    constant: float = 0.45
    meaning: float = 0.4
    look_back: float = 6.9
    keep: float = 0.12
    match: float = 2.2
    copy: float = 0.8
    other: float = 0.015
    slow: float = 0.05
    gain: float = 2.0


@torch.no_grad()
def start_with_copying(
    model: Any, seed: int, vector_VC: Tensor | None = None, config: CircuitConfig | None = None
) -> None:
    """Overwrites embeddings and attention weights; needs one query head per KV head and at least two layers.

    `vector_VC`: rows of length sqrt(width) that similar tokens share a part of (`train.vectors`).
    """
    config = config or CircuitConfig()
    generator = torch.Generator().manual_seed(seed)
    direction_C = _embeddings(model, vector_VC, config, generator)
    D = model.config.head_dim
    layers = [layer.self_attn for layer in model.model.layers]
    copying = range(model.config.num_attention_heads // 2)
    read_RC = _orthogonal(len(copying) * D, model.config.hidden_size, generator)
    kept_CR = _orthogonal(model.config.hidden_size, len(copying) * D, generator)
    for depth, attention in enumerate(layers):
        for head in range(model.config.num_attention_heads):
            rows = slice(head * D, (head + 1) * D)
            if depth == 0 and head in copying:
                query_D, key_D = _one_back(model, config)
                query_DC, key_DC = torch.outer(query_D, direction_C), torch.outer(key_D, direction_C)
                value_DC, out_CD = read_RC[rows], config.keep * kept_CR[:, rows]
            elif depth == 1 and head in copying:
                query_DC = config.match * _slow_rows(read_RC[rows], config)
                key_DC = config.match * _slow_rows(kept_CR[:, rows].T, config)
                value_DC = _orthogonal(D, model.config.hidden_size, generator)
                out_CD = config.copy * value_DC.T
            else:
                query_DC = key_DC = _slow_rows(_orthogonal(D, model.config.hidden_size, generator), config)
                value_DC = _orthogonal(D, model.config.hidden_size, generator)
                out_CD = config.other * value_DC.T
            attention.q_proj.weight[rows] = query_DC
            attention.k_proj.weight[rows] = key_DC
            attention.v_proj.weight[rows] = value_DC
            attention.o_proj.weight[:, rows] = out_CD
    for attention in layers[:2] if hasattr(layers[0], "q_norm") else ():
        attention.q_norm.weight.fill_(config.gain)
        attention.k_norm.weight.fill_(config.gain)


def _embeddings(model: Any, vector_VC: Tensor | None, config: CircuitConfig, generator: torch.Generator) -> Tensor:
    """Draws the embeddings; returns the direction that all share, scaled to what a layer's norm makes of it."""
    weight_VC = model.model.embed_tokens.weight
    width = weight_VC.shape[1]
    shared_C = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    weight_VC.normal_(0, 1, generator=generator)
    if vector_VC is not None:
        seen_V1 = vector_VC.norm(dim=1, keepdim=True) > 0
        mixed_VC = weight_VC * math.sqrt(1 - config.meaning) + vector_VC * math.sqrt(config.meaning)
        weight_VC.copy_(torch.where(seen_V1, mixed_VC, weight_VC))
    weight_VC.mul_(config.embedding_std)
    weight_VC.sub_((weight_VC @ shared_C)[:, None] * shared_C)
    weight_VC.add_(config.constant * config.embedding_std * math.sqrt(width) * shared_C)
    seen = math.sqrt(width) * config.constant / math.sqrt(1 + config.constant**2)
    return config.look_back / seen * shared_C


def _one_back(model: Any, config: CircuitConfig) -> tuple[Tensor, Tensor]:
    """query_D and key_D whose product after RoPE is largest for the token before: the fast pairs, turned by one."""
    pairs = model.config.head_dim // 2
    angle = _angles(pairs)
    fast = (angle > 0.05).float()
    return torch.cat([fast * angle.cos(), -fast * angle.sin()]), torch.cat([fast, torch.zeros(pairs)])


def _angles(pairs: int) -> Tensor:
    """Radians that each rotary pair turns by from one token to the next, with the theta that recipes start with."""
    return ROPE_THETA ** (-torch.arange(pairs) / pairs)


def _slow_rows(weight_DC: Tensor, config: CircuitConfig) -> Tensor:
    """The first rows of `weight_DC`, moved to the dimensions of the slow rotary pairs; zeros elsewhere."""
    pairs = len(weight_DC) // 2
    slow = (_angles(pairs) < config.slow).nonzero().squeeze(1)
    index = torch.cat([slow, slow + pairs])
    moved = torch.zeros_like(weight_DC)
    moved[index] = weight_DC[: len(index)]
    return moved


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns, or rows where there are fewer of them."""
    q, _ = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=generator))
    return q if rows >= columns else q.T
