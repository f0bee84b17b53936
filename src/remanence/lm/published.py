"""Reads checkpoints in the format of YuWangX/memoryllm-8b and mplus-8b: names, adapters, pool, long-term memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from remanence.errors import InputError
from remanence.lm.lora import LoraConfig, adapter, add_roles, fill

ROLE_OF = {"default": "write", "decoder_adapter": "read"}
"""Their names of the two adapters."""
_LORA = re.compile(r"(.+)\.lora_([AB])\.(default|decoder_adapter)\.weight")
_PROJECTOR = re.compile(r"model\.layers\.(\d+)\.self_attn\.(query|key|encoder_query)_proj\.(\d)\.weight")
_LONG = re.compile(r"(ltm|ltm_keys|ltm_ages|ltm_recall_frequencies)\.(\d+)")
_LONG_NAMES = {"ltm": "row_LMC", "ltm_keys": "key_LME", "ltm_ages": "age_LM", "ltm_recall_frequencies": "frequency_LM"}


@dataclass(frozen=True)
class Published:
    """The model with both adapters in it, `latent.safetensors`' tensors, and the fields of its method's config."""

    model: LlamaForCausalLM
    latent: dict[str, Tensor]
    settings: dict[str, Any]


def convert(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    inv_freq_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
) -> Published:
    """Builds the model of a published state dict. Ages and frequencies stay float32, whatever `dtype` (authors' code).

    `inv_freq_dtype` bfloat16: the rotary frequencies are rounded to it, as the authors' README does. Raises
    InputError where a tensor is missing or has another shape.
    """
    base, lora, latent = _sort(state)
    model = LlamaForCausalLM(LlamaConfig(**{**config, "model_type": "llama"}))
    fill(dict(model.state_dict()), base, "the published checkpoint")
    for parameter in model.parameters() if dtype else ():  # not `model.to`, which would round frequencies too
        parameter.data = parameter.data.to(dtype)
    if described := config.get("lora_config"):
        options = LoraConfig(
            described["r"], described["lora_alpha"], described["lora_dropout"], tuple(described["target_modules"])
        )
        add_roles(model, options)
        for role in ("write", "read"):
            # without add_decoder_lora one adapter both writes and reads
            found = lora["read" if role == "read" and config.get("add_decoder_lora") else "write"]
            fill(adapter(model, role), found, f"the {role} adapter of the published checkpoint")
    if inv_freq_dtype is not None:
        round_frequencies(model, inv_freq_dtype)
    return Published(model.eval(), latent, _settings(config, latent))


def round_frequencies(model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """Rotary frequencies as a cast of the whole model to `dtype` leaves them: rounded, then used as float32."""
    for module in model.modules():
        for name in ("inv_freq", "original_inv_freq"):
            if isinstance(found := getattr(module, name, None), Tensor):
                setattr(module, name, found.to(dtype).float())


def _sort(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of the base model, of each adapter (PEFT's names), and of the latent memory (ours)."""
    base: dict[str, Tensor] = {}
    lora: dict[str, dict[str, Tensor]] = {"write": {}, "read": {}}
    latent: dict[str, Tensor] = {}
    long: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        if match := _LORA.fullmatch(name):
            module, part, theirs = match.groups()
            lora[ROLE_OF[theirs]][f"base_model.model.{module}.lora_{part}.weight"] = tensor
        elif match := _PROJECTOR.fullmatch(name):
            layer, kind, place = match.groups()
            latent[f"{kind}.{layer}.{place}.weight"] = tensor
        elif match := _LONG.fullmatch(name):
            long.setdefault(_LONG_NAMES[match[1]], {})[int(match[2])] = tensor
        elif name == "memory":
            latent["pool_LNC"] = tensor
        elif name == "bos_embedding":
            latent["bos_LC"] = tensor[:, 0]
        elif name == "new_memory_positional_emb":
            latent["mark_C"] = tensor[0, 0]
        elif name != "initialized":
            base[name.replace(".base_layer.", ".")] = tensor
    for name, layers in long.items():
        exact = name in ("age_LM", "frequency_LM")
        latent[f"long.{name}"] = torch.stack([layers[i].float() if exact else layers[i] for i in range(len(layers))])
    return base, lora, latent


def _settings(config: Mapping[str, Any], latent: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `MPlusConfig`; their `num_blocks` counts the long-term slots too."""
    try:
        long_blocks = int(config.get("num_ltm_blocks") or 0)
        settings: dict[str, Any] = {
            "write_rows": config["num_tokens"],
            "pool_blocks": config["num_blocks"] - long_blocks,
            "long_blocks": long_blocks,
        }
        if long_blocks:
            settings |= {
                "key_width": config["selector_hidden_dim"],
                "merge_writes": config["update_ltm_frequency"],
                "initial_frequency": float(config["initial_rf_when_moving_stm_to_ltm"]),
                "decay": float(config["decay_frequency"]),
            }
    except (KeyError, TypeError) as error:
        raise InputError(f"the published config has no usable {error}", "get its config.json again") from error
    rows = settings["write_rows"] * settings["pool_blocks"]
    if latent["pool_LNC"].shape[1] != rows:
        found = latent["pool_LNC"].shape[1]
        raise InputError(f"the pool has {found} rows, its config says {rows}", "get config.json and weights together")
    return settings
