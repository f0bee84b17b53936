"""Initial weights with induction heads (Olsson et al., arXiv 2209.11895), which copy what followed the same token.

Training finds such heads by itself, but late: on two CPU cores 1,300 steps from random weights copied 3 % of random
tokens; these weights copy 63 % before the first step. The first half of the heads of layer 0 attend to the previous
token and write it into their own directions. The same heads of layer 1 attend to the token that followed the present
one, and copy it. All other heads attend to similar tokens. All weights are trained afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remanence.train.core.shapes import ROPE_THETA


@dataclass(frozen=True)
class InductionConfig:
    """Sizes of the initial weights, in units of the residual stream.

    - `constant`: share of each embedding that is the same for all tokens; the look-back heads use it.
    - `meaning`: share of the remaining variance that is word vectors.
    - `slow`: rotary pairs that turn by less than this per token (radians) are used to match tokens.
    - `gain`: with QK norm, the gain of queries and keys in the two layers that copy, in place of `look_back` and
      `match`. At nano's shape 56 % of random tokens are copied with it, 47 % without QK norm, none with a gain of 1.
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
    model: Any, seed: int, vector_VC: Tensor | None = None, config: InductionConfig | None = None
) -> None:
    """Overwrites embeddings and attention weights. Needs one query head per KV head and at least two layers.

    `vector_VC`: word vectors of length sqrt(width) (`init/word_vectors.py`); None: random embeddings.
    """
    config = config or InductionConfig()
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


def _embeddings(model: Any, vector_VC: Tensor | None, config: InductionConfig, generator: torch.Generator) -> Tensor:
    """Draws the embeddings; returns direction_C, which all share, scaled as after a layer's norm."""
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


def _one_back(model: Any, config: InductionConfig) -> tuple[Tensor, Tensor]:
    """(query_D, key_D) whose product after RoPE is largest for the previous token: the fast pairs, turned by one."""
    pairs = model.config.head_dim // 2
    angle = _angles(pairs)
    fast = (angle > 0.05).float()
    return torch.cat([fast * angle.cos(), -fast * angle.sin()]), torch.cat([fast, torch.zeros(pairs)])


def _angles(pairs: int) -> Tensor:
    """Radians per token of each rotary pair, with the theta of the recipes."""
    return ROPE_THETA ** (-torch.arange(pairs) / pairs)


def _slow_rows(weight_DC: Tensor, config: InductionConfig) -> Tensor:
    """The first rows of `weight_DC` in the dimensions of the slow rotary pairs; zeros elsewhere."""
    pairs = len(weight_DC) // 2
    slow = (_angles(pairs) < config.slow).nonzero().squeeze(1)
    index = torch.cat([slow, slow + pairs])
    moved = torch.zeros_like(weight_DC)
    moved[index] = weight_DC[: len(index)]
    return moved


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A random matrix with orthonormal columns, or rows if there are fewer of them."""
    q, _ = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=generator))
    return q if rows >= columns else q.T
