"""Starts a model with the weights of a shallower one: layers are copied, and the outputs of copies start at zero."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from remanence.errors import InputError

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def sources(old: int, new: int) -> list[int]:
    """For each of `new` layers, the layer of `old` that it copies. They are spread evenly: each half stays a half."""
    return [(2 * i + 1) * old // (2 * new) for i in range(new)]


def grown(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The state dict of a Llama with `num_layers` layers that computes the same function.

    The same dict if it has as many layers. ValueError if it has more, or none.
    """
    old = 1 + max((int(match[1]) for match in map(LAYER.fullmatch, state) if match), default=-1)
    if old == num_layers:
        return state
    if not old:
        raise ValueError("it has no Llama layers")
    if old > num_layers:
        raise ValueError(f"it has {old} layers, more than {num_layers}")
    deeper = {name: tensor for name, tensor in state.items() if not LAYER.fullmatch(name)}
    before = -1
    for i, source in enumerate(sources(old, num_layers)):
        for name in [match[2] for match in map(LAYER.fullmatch, state) if match and int(match[1]) == source]:
            tensor = state[f"model.layers.{source}.{name}"]
            silent = source == before and name in OUTPUTS
            deeper[f"model.layers.{i}.{name}"] = torch.zeros_like(tensor) if silent else tensor.clone()
        before = source
    return deeper


def load_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Loads `folder/model.safetensors` into `model`, grown to its number of layers. InputError if it does not fit."""
    try:
        state = grown(load_file(folder / "model.safetensors"), model.config.num_hidden_layers)
        result = model.load_state_dict(state, strict=False)
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        others = {*result.missing_keys, *result.unexpected_keys} - tied
        if others:
            raise ValueError(f"{min(others)} is not in both")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        problem = f"cannot start with the weights of {str(folder)!r}: {str(error).splitlines()[0]}"
        hint = "give a model of this recipe's width and vocabulary, with at most as many layers"
        raise InputError(problem, hint) from error
