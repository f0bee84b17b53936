"""Makes a model deeper without changing what it computes: copies of layers whose outputs begin at zero."""

from __future__ import annotations

import re

import torch
from torch import Tensor

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def sources(old: int, new: int) -> list[int]:
    """Of each of `new` layers, the one of `old` that it is or copies: evenly spread, so that halves stay halves."""
    return [(2 * i + 1) * old // (2 * new) for i in range(new)]


def grown(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The weights of a Llama of `num_layers`; the same tensors where it has as many. ValueError where it has more."""
    old = 1 + max((int(match[1]) for match in map(LAYER.fullmatch, state) if match), default=-1)
    if old == num_layers:
        return state
    if not old:
        raise ValueError("it has no layers of a Llama")
    if old > num_layers:
        raise ValueError(f"it has {old} layers, more than {num_layers}")
    found = {name: tensor for name, tensor in state.items() if not LAYER.fullmatch(name)}
    before = -1
    for i, source in enumerate(sources(old, num_layers)):
        for name in [match[2] for match in map(LAYER.fullmatch, state) if match and int(match[1]) == source]:
            tensor = state[f"model.layers.{source}.{name}"]
            silent = source == before and name in OUTPUTS
            found[f"model.layers.{i}.{name}"] = torch.zeros_like(tensor) if silent else tensor.clone()
        before = source
    return found
