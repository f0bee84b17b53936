"""A model that is there already, trained further: whole or by adapters, and written as a folder that `load` reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from remanence.errors import InputError
from remanence.lm.folders import BUNDLED, SETTINGS
from remanence.lm.lm import LM
from remanence.lm.load import load
from remanence.lm.lora import LoraConfig, adapter, add_roles, save_adapter
from remanence.train.model import compute_layers_again, to_bfloat16, use_fast_attention
from remanence.train.optimizer import Group, Optimizer
from remanence.types import Prefix


@dataclass(frozen=True)
class Further:
    """What of a recipe says how its base is trained: `lora` None is whole, else one adapter for each of `roles`."""

    base: str
    lora: LoraConfig | None
    roles: tuple[str, ...]
    dtype: Literal["bfloat16", "float32"]
    weight_decay: float
    clip_norm: float
    checkpointing: bool


def load_base(base: str) -> LM:
    """The model to begin with. InputError where none is named, and for adapters and their like."""
    if not base:
        raise InputError("this recipe has no model to begin with", "give --start a model folder or a Hub id")
    lm = load(base)
    if "adapter" in lm.settings:
        named = lm.settings["adapter"]["base"]
        raise InputError(f"{base!r} is an adapter of {named!r}, not a model", f"begin with --start {named}")
    if lm.latent is not None:
        raise InputError(f"{base!r} has a latent memory already", "begin with the model it was made from")
    return lm


def prepared(lm: LM, how: Further) -> Optimizer:
    """The optimizer of what is trained, in float32; the rest, and the products, are of the recipe's type."""
    masters = _with_adapters(lm, how)
    if lm.model.config.model_type == "llama" and lm.device.type == "cpu":
        use_fast_attention(lm.model)  # plain scaled dot products: other families do more
    if how.checkpointing:
        compute_layers_again(lm.model)
    trained = _trained(lm, how)
    optimizer = Optimizer(trained, _groups(trained, how.weight_decay), how.clip_norm)
    if masters:
        optimizer.load_weights(masters)
    lm.drop_constants()
    return optimizer


def _with_adapters(lm: LM, how: Further) -> dict[str, Tensor]:
    """Adds adapters, and brings what is not trained to the recipe's type; returns float32 weights to begin with."""
    is_low = how.dtype == "bfloat16"
    if how.lora is None:
        masters = {name: p.detach().float().clone() for name, p in lm.model.named_parameters()} if is_low else {}
        if is_low:
            to_bfloat16(lm.model)
        return masters
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)
    if is_low:
        to_bfloat16(lm.model)
    add_roles(lm.model, how.lora, how.roles)
    lm.reads_as = "read" if "read" in how.roles else None
    lm.writes_as = "write" if "write" in how.roles else None
    return {}


def _trained(lm: LM, how: Further) -> dict[str, nn.Parameter]:
    """What is trained, by name: all weights, or the adapters of all roles, in float32."""
    if how.lora is None:
        return dict(lm.model.named_parameters())
    found = {f"{role}.{name}": p for role in how.roles for name, p in adapter(lm.model, role).items()}
    for parameter in found.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return found


def _groups(trained: dict[str, nn.Parameter], weight_decay: float) -> list[Group]:
    """Matrices decay; norms and biases do not. (0.9, 0.95) is inferred: the paper does not say."""
    matrices = tuple(name for name, p in trained.items() if p.ndim > 1)
    others = tuple(name for name in trained if name not in matrices)
    return [Group("adamw", matrices, 1.0, weight_decay, (0.9, 0.95)), Group("adamw", others, 1.0, 0.0, (0.9, 0.95))]


def logits_at(lm: LM, ids_BT: Tensor, index_N: Tensor, memory: Prefix | None, role: str | None) -> Tensor:
    """logits_NV at chosen of the flattened B·T positions; whatever a family puts between hidden states and logits.

    Of the columns that no row asks for no logits are made.
    """
    T = ids_BT.shape[1]
    asked_N = index_N % T
    kept_K = asked_N.unique()
    positions_T = torch.arange(T, device=ids_BT.device) + (0 if memory is None else memory.offset_tokens)
    extra: dict[str, Any] = {} if memory is None else {"memory": memory}
    extra |= {} if role is None else {"role": role}
    model: Any = lm.model
    logits_BKV = model(ids_BT, position_ids=positions_T[None], use_cache=False, logits_to_keep=kept_K, **extra).logits
    return logits_BKV[index_N // T, torch.searchsorted(kept_K, asked_N)]


def write_out(lm: LM, how: Further, folder: Path, settings: dict[str, Any]) -> None:
    """Adapters by PEFT's names, or the whole model in Hugging Face's format; in the recipe's type.

    `settings` go into `remanence.json`: how memory is read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if how.lora is None:
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    else:
        base, dtype = named(how.base), torch.bfloat16 if how.dtype == "bfloat16" else None
        for role in how.roles:
            save_adapter(lm.model, role, folder / role, how.lora, base, dtype)
        settings = {"adapter": {"base": base, "roles": list(how.roles)}, **settings}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def named(base: str) -> str:
    """A base as an adapter's folder names it: a bundled name, a Hub id, or where the folder is."""
    return str(Path(base).resolve()) if base not in BUNDLED and Path(base).is_dir() else base
