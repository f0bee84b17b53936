"""Moves rotated keys to other positions with the family's own rotary embedding, and proves that it is exact."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remanence.errors import UnsupportedModel
from remanence.lm import seam
from remanence.lm.family import capture


def move_keys(model: PreTrainedModel, key_LGND: Tensor, layers: Sequence[int], num_positions: int) -> Tensor:
    """`key_LGND` of `layers` (each rotated to some position) as if each had stood `num_positions` later.

    Rotations add up: R(p + n) = R(n) R(p). Raises UnsupportedModel for families where that cannot be done.
    """
    if num_positions == 0:
        return key_LGND
    rotate = _rotation(model, num_positions, key_LGND)
    return torch.stack([rotate(layer, key_GND) for layer, key_GND in zip(layers, key_LGND, strict=True)])


def prove_move(model: PreTrainedModel, num_positions: int = 7) -> float:
    """Largest difference between keys moved by `move_keys` and keys of the same text computed there."""
    layers = tuple(sorted(seam.attention_modules(model)))
    ids_BT = torch.arange(3, 11, device=model.device)[None]
    with torch.no_grad():
        here = capture(model, ids_BT, frozenset(layers[:1]))
        there = capture(
            model,
            ids_BT,
            frozenset(layers[:1]),
            positions_BT=torch.arange(8, device=model.device)[None] + num_positions,
        )
        moved = move_keys(model, here[layers[0]].key_BGSD, layers[:1], num_positions)
    return float((moved - there[layers[0]].key_BGSD).abs().max())


def _rotation(model: PreTrainedModel, num_positions: int, like: Tensor) -> Callable[[int, Tensor], Tensor]:
    modules = seam.attention_modules(model)
    rotary = [module for name, module in model.named_modules() if name.endswith("rotary_emb")]
    if len(rotary) != 1:
        raise _unsupported(model, f"it has {len(rotary)} rotary embeddings")
    position_BT = torch.tensor([[num_positions]], device=like.device)
    cos, sin = rotary[0](like.float(), position_BT)
    scale = (cos[..., :1] ** 2 + sin[..., :1] ** 2).sqrt()  # YaRN scales keys once; moving must not scale them again

    def rotate(layer: int, key_GND: Tensor) -> Tensor:
        apply: Any = getattr(sys.modules[type(modules[layer]).__module__], "apply_rotary_pos_emb", None)
        if apply is None:
            raise _unsupported(model, "its module has no apply_rotary_pos_emb")
        width = cos.shape[-1]
        turned, rest = key_GND[None, ..., :width].float(), key_GND[None, ..., width:]
        _, turned = apply(turned, turned, cos / scale, sin / scale)
        return torch.cat([turned.to(key_GND.dtype), rest], dim=-1)[0]

    return rotate


def _unsupported(model: PreTrainedModel, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"keys of {model.config.model_type!r} cannot be moved to other positions: {reason}",
        "use the preset 'paper', or --method retrieved_text",
    )
