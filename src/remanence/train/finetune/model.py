"""Trains an existing model further, whole or by adapters with roles, and writes it as a folder that `load` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from remanence.errors import InputError
from remanence.lm.folders import BUNDLED, SETTINGS
from remanence.lm.lm import LM
from remanence.lm.load import load
from remanence.lm.lora import LoraConfig, adapter, add_roles, save_adapter
from remanence.methods.memory3.method import Memory3Config
from remanence.train.core.loop import Run
from remanence.train.core.model import enable_gradient_checkpointing, to_bfloat16, use_fast_attention
from remanence.train.core.optimizer import Optimizer, ParamGroup
from remanence.train.examples.corpora import Corpora, corpus_sizes, load_or_skip
from remanence.train.examples.mixture import Encoder
from remanence.train.recipes.chat import ChatRecipe
from remanence.train.recipes.retrofit import RetrofitRecipe
from remanence.types import Prefix


@dataclass(frozen=True)
class FinetuneConfig:
    """The part of a recipe that says how its base is trained.

    `lora` None: the whole model; else one adapter for each of `roles` ("write", "read").
    """

    base: str
    lora: LoraConfig | None
    roles: tuple[str, ...]
    dtype: Literal["bfloat16", "float32"]
    weight_decay: float
    clip_norm: float
    checkpointing: bool


def finetune_config(recipe: ChatRecipe | RetrofitRecipe) -> FinetuneConfig:
    """The adapter of a chat recipe only reads: what the base has written stays valid."""
    return FinetuneConfig(
        recipe.base,
        recipe.lora,
        recipe.roles if isinstance(recipe, RetrofitRecipe) else ("read",),
        recipe.dtype,
        recipe.weight_decay,
        recipe.clip_norm,
        recipe.checkpointing,
    )


@dataclass(kw_only=True)
class FinetuneRun(Run):
    """A run that trains `lm` further. `config`: how memory is written and read, but for the number of kept tokens."""

    recipe: Any
    lm: LM
    config: Memory3Config
    encoder: Encoder
    corpora: Corpora


FinetuneRunT = TypeVar("FinetuneRunT", bound=FinetuneRun)


def start_finetune_run(
    make: Callable[..., FinetuneRunT],
    recipe: ChatRecipe | RetrofitRecipe,
    lm: LM,
    config: Memory3Config,
    data: Path | None,
    folder: Path,
    skip_damaged: bool,
    **fields: Any,
) -> FinetuneRunT:
    """A run at step 0. With adapters the base is frozen, in the recipe's dtype; what is trained is float32."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    return make(
        folder,
        build_optimizer(lm, finetune_config(recipe)),
        recipe.guard,
        data_files=corpus_sizes(data),
        recipe=recipe,
        lm=lm,
        config=config,
        encoder=Encoder(lm.tokenizer),
        corpora=load_or_skip(data, folder, skip_damaged),
        **fields,
    )


def load_base(base: str) -> LM:
    """The model to begin with. InputError if none is named, or if it is an adapter or has a latent memory."""
    if not base:
        raise InputError("this recipe has no model to begin with", "give --start a model folder or a Hub id")
    lm = load(base)
    if "adapter" in lm.settings:
        own_base = lm.settings["adapter"]["base"]
        raise InputError(f"{base!r} is an adapter of {own_base!r}, not a model", f"begin with --start {own_base}")
    if lm.latent is not None:
        raise InputError(f"{base!r} already has a latent memory", "begin with the model that it was made from")
    return lm


def build_optimizer(lm: LM, config: FinetuneConfig) -> Optimizer:
    """Adds the adapters to `lm`, sets its dtypes, and returns the optimizer of what is trained (in float32)."""
    masters = _add_adapters(lm, config)
    if lm.model.config.model_type == "llama" and lm.device.type == "cpu":
        use_fast_attention(lm.model)  # other families do more than plain scaled dot products
    if config.checkpointing:
        enable_gradient_checkpointing(lm.model)
    trained = _trained(lm, config)
    optimizer = Optimizer(trained, _param_groups(trained, config.weight_decay), config.clip_norm)
    if masters:
        optimizer.load_weights(masters)
    lm.drop_constants()
    return optimizer


def _add_adapters(lm: LM, config: FinetuneConfig) -> dict[str, Tensor]:
    """Adds adapters and converts what is not trained to the recipe's dtype; returns float32 weights to begin with."""
    is_low = config.dtype == "bfloat16"
    if config.lora is None:
        masters = {name: p.detach().float().clone() for name, p in lm.model.named_parameters()} if is_low else {}
        if is_low:
            to_bfloat16(lm.model)
        return masters
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)
    if is_low:
        to_bfloat16(lm.model)
    add_roles(lm.model, config.lora, config.roles)
    lm.reads_as = "read" if "read" in config.roles else None
    lm.writes_as = "write" if "write" in config.roles else None
    return {}


def _trained(lm: LM, config: FinetuneConfig) -> dict[str, nn.Parameter]:
    """The trained parameters by name: all weights, or the adapters of all roles in float32."""
    if config.lora is None:
        return dict(lm.model.named_parameters())
    adapters = {f"{role}.{name}": p for role in config.roles for name, p in adapter(lm.model, role).items()}
    for parameter in adapters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return adapters


def _param_groups(trained: dict[str, nn.Parameter], weight_decay: float) -> list[ParamGroup]:
    """Matrices have weight decay, norms and biases none. The betas (0.9, 0.95) are inferred: the paper is silent."""
    matrices = tuple(name for name, p in trained.items() if p.ndim > 1)
    others = tuple(name for name in trained if name not in matrices)
    return [
        ParamGroup("adamw", matrices, 1.0, weight_decay, (0.9, 0.95)),
        ParamGroup("adamw", others, 1.0, 0.0, (0.9, 0.95)),
    ]


def selected_logits(lm: LM, ids_BT: Tensor, index_N: Tensor, memory: Prefix | None, role: str | None) -> Tensor:
    """logits_NV at N of the flattened B·T positions, by the model's own forward pass, whatever its family.

    Columns that no row needs get no logits.
    """
    T = ids_BT.shape[1]
    column_N = index_N % T
    column_K = column_N.unique()
    positions_T = torch.arange(T, device=ids_BT.device) + (0 if memory is None else memory.offset_tokens)
    options: dict[str, Any] = {} if memory is None else {"memory": memory}
    options |= {} if role is None else {"role": role}
    model: Any = lm.model
    output = model(ids_BT, position_ids=positions_T[None], use_cache=False, logits_to_keep=column_K, **options)
    return output.logits[index_N // T, torch.searchsorted(column_K, column_N)]


@contextmanager
def swapped_weights(trained: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Replaces the data of `trained` by `weights` inside the block: a reference model without a second model."""
    own = {name: p.data for name, p in trained.items()}
    for name, p in trained.items():
        p.data = weights[name]
    try:
        yield
    finally:
        for name, p in trained.items():
            p.data = own[name]


def kept_tokens_at(kept_tokens: Sequence[int | None], number: int) -> int | None:
    """The number of kept tokens in batch `number`: the entries take turns."""
    return kept_tokens[number % len(kept_tokens)]


def write_model(lm: LM, config: FinetuneConfig, folder: Path, settings: dict[str, Any]) -> None:
    """Writes adapters by PEFT's names, or the whole model in Hugging Face's format, in the recipe's dtype.

    `settings`: how memory is read, for `remanence.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config.lora is None:
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    else:
        base, dtype = base_name(config.base), torch.bfloat16 if config.dtype == "bfloat16" else None
        for role in config.roles:
            save_adapter(lm.model, role, folder / role, config.lora, base, dtype)
        settings = {"adapter": {"base": base, "roles": list(config.roles)}, **settings}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def base_name(base: str) -> str:
    """How an adapter's folder names its base: a bundled name, a Hub id, or an absolute path."""
    return str(Path(base).resolve()) if base not in BUNDLED and Path(base).is_dir() else base
