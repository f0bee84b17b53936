"""Moves rotated keys to other positions with the family's own rotary embedding, proved exact for each layer."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remanence.errors import UnsupportedModel
from remanence.lm import attention
from remanence.lm.capture import capture, text_config

TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference between a moved key and the key computed there, as a part of the largest key; else 1e-4."""

_NUM_TOKENS, _NUM_POSITIONS = 8, 48


@dataclass(frozen=True)
class Turn:
    """One way to rotate a key: a rotary embedding, the family's function that applies it, and what they take."""

    rotary: nn.Module
    layer_type: str | None
    apply: Any
    spread: int

    def __call__(self, key_GND: Tensor, num_positions: int) -> Tensor:
        exact = key_GND.to(torch.promote_types(key_GND.dtype, torch.float32))[None]
        position_BT = torch.tensor([[num_positions]], device=key_GND.device)
        cos, sin = self.rotary(exact, position_BT, *([self.layer_type] if self.layer_type else []))
        scale = (cos[..., :1] ** 2 + sin[..., :1] ** 2).sqrt()  # YaRN scales keys once; moving must not scale again
        width = cos.shape[-1] * self.spread
        _, turned = self.apply(exact[..., :width], exact[..., :width], cos / scale, sin / scale)
        return torch.cat([turned, exact[..., width:]], dim=-1)[0].to(key_GND.dtype)


_proved: WeakKeyDictionary[PreTrainedModel, dict[int, Turn | None]] = WeakKeyDictionary()


def move_keys(model: PreTrainedModel, key_LGND: Tensor, layers: Sequence[int], num_positions: int) -> Tensor:
    """`key_LGND` of `layers` (each rotated to some position) as if each had stood `num_positions` later.

    Rotations add up: R(p + n) = R(n) R(p); layers without RoPE keep their keys. How each layer rotates is found
    by trying and proved once per model. Raises UnsupportedModel for families where that fails.
    """
    if num_positions == 0:
        return key_LGND
    if model not in _proved:
        _proved[model] = _prove(model)
    turns = [_proved[model][layer] for layer in layers]
    return torch.stack([turn(key, num_positions) if turn else key for turn, key in zip(turns, key_LGND, strict=True)])


@torch.no_grad()
def _prove(model: PreTrainedModel) -> dict[int, Turn | None]:
    """For each layer the way that turns keys of a text into keys of the same text `_NUM_POSITIONS` later."""
    modules = attention.attention_modules(model)
    positions_BT = torch.arange(_NUM_TOKENS, device=model.device)[None]
    ids_BT = positions_BT + text_config(model).vocab_size // 4
    here = capture(model, ids_BT, frozenset(modules))
    there = capture(model, ids_BT, frozenset(modules), positions_BT=positions_BT + _NUM_POSITIONS)
    found = {}
    for layer, module in modules.items():
        key, truth = here[layer].key_BGSD, there[layer].key_BGSD
        error, _, turn = min(
            ((_error(turn, key, truth), i, turn) for i, turn in enumerate([None, *_turns(model, module)])),
            key=lambda tried: tried[:2],
        )
        if not error <= TOLERANCE.get(model.dtype, 1e-4):
            raise UnsupportedModel(
                f"keys of {model.config.model_type!r} cannot be moved to other positions: at layer {layer} "
                f"they differ by {error:.2g} of the largest key",
                "use the preset 'paper', or --method retrieved_text",
            )
        found[layer] = turn
    return found


def _turns(model: PreTrainedModel, module: nn.Module) -> Iterator[Turn]:
    apply = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    for rotary in model.modules() if apply else ():
        if "RotaryEmbedding" in type(rotary).__name__:
            by_type = "layer_type" in inspect.signature(rotary.forward).parameters
            for layer_type in sorted(set(text_config(model).layer_types)) if by_type else [None]:
                for spread in (1, 2):  # 2: cos and sin for half of a key (gpt-oss)
                    yield Turn(rotary, layer_type, apply, spread)


def _error(turn: Turn | None, key_BGSD: Tensor, truth_BGSD: Tensor) -> float:
    try:
        moved_BGSD = key_BGSD if turn is None else turn(key_BGSD[0], _NUM_POSITIONS)[None]
        difference = (moved_BGSD.float() - truth_BGSD.float()).abs().max() / truth_BGSD.float().abs().max()
        return float(difference) if torch.isfinite(difference) else float("inf")
    except (RuntimeError, TypeError, ValueError):  # made for other shapes
        return float("inf")
