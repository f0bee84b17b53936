"""Prepares a run that gives an existing model memory, and writes what comes out of it as a folder that `load` reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from remanence.errors import InputError
from remanence.lm.lm import BUNDLED, LM, SETTINGS, load
from remanence.lm.lora import adapter, add_roles, save_adapter
from remanence.methods.memory3 import Memory3Config, paper
from remanence.train import checkpoint, loop, parallel
from remanence.train.corpora import load_or_skip
from remanence.train.folder import stage_begins, stage_ends
from remanence.train.model import compute_layers_again, to_bfloat16, use_fast_attention
from remanence.train.optimizer import Group, Optimizer
from remanence.train.recipes.retrofit import RetrofitRecipe
from remanence.train.retrofit import RetrofitRun, continual
from remanence.train.rows import Encoder

STAGE = "continual"


def start_retrofit_run(
    recipe: RetrofitRecipe, data: Path | None, folder: Path, *, skip_damaged: bool = False
) -> RetrofitRun:
    """A run at step 0. With adapters the base stays as it is, in the recipe's type; what is trained is float32."""
    parallel.start()
    if parallel.size() > 1:
        raise InputError("retrofit is made by one process", "start it without torchrun")
    lm = load_base(recipe)
    config = _config(lm, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    masters = _prepare(lm, recipe)
    if lm.model.config.model_type == "llama" and lm.device.type == "cpu":
        use_fast_attention(lm.model)  # plain scaled dot products: other families do more
    if recipe.checkpointing:
        compute_layers_again(lm.model)
    trained = _trained(lm, recipe)
    optimizer = Optimizer(trained, _groups(trained, recipe), recipe.clip_norm)
    if masters:
        optimizer.load_weights(masters)
    lm.drop_constants()
    return RetrofitRun(
        folder,
        optimizer,
        recipe.guard,
        data=data,
        recipe=recipe,
        lm=lm,
        config=config,
        encoder=Encoder(lm.tokenizer),
        corpora=load_or_skip(data, folder, skip_damaged),
    )


def load_base(recipe: RetrofitRecipe) -> LM:
    """The model that is to get memory. InputError where none is named, and for adapters and their like."""
    if not recipe.base:
        raise InputError("retrofit has no model to begin with", "give --start a model folder or a Hub id")
    lm = load(recipe.base)
    if "adapter" in lm.settings:
        base = lm.settings["adapter"]["base"]
        raise InputError(f"{recipe.base!r} is an adapter of {base!r}, not a model", f"begin with --start {base}")
    if lm.latent is not None:
        raise InputError(f"{recipe.base!r} has a latent memory already", "begin with the model it was made from")
    return lm


def _config(lm: LM, recipe: RetrofitRecipe) -> Memory3Config:
    config = replace(paper(lm), reference_tokens=recipe.reference_tokens, kept_tokens=recipe.used_kept_tokens)
    if recipe.memory_layers is None:
        return config
    if odd := [layer for layer in recipe.memory_layers if not 0 <= layer < lm.dims.num_layers]:
        raise InputError(f"{lm.name} has no layer {odd[0]}", f"name some of 0 to {lm.dims.num_layers - 1}")
    return replace(config, memory_layers=tuple(sorted(set(recipe.memory_layers))))


def _prepare(lm: LM, recipe: RetrofitRecipe) -> dict[str, Tensor]:
    """Adds adapters, and brings what is not trained to the recipe's type; returns float32 weights to begin with."""
    is_low = recipe.dtype == "bfloat16"
    if recipe.lora is None:
        masters = {name: p.detach().float().clone() for name, p in lm.model.named_parameters()} if is_low else {}
        if is_low:
            to_bfloat16(lm.model)
        return masters
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)
    if is_low:
        to_bfloat16(lm.model)
    add_roles(lm.model, recipe.lora, recipe.roles)
    lm.reads_as = "read" if recipe.reads else None
    lm.writes_as = "write" if recipe.writes else None
    return {}


def _trained(lm: LM, recipe: RetrofitRecipe) -> dict[str, nn.Parameter]:
    """What is trained, by name: all weights, or the adapters of all roles, in float32."""
    if recipe.lora is None:
        return dict(lm.model.named_parameters())
    found = {f"{role}.{name}": p for role in recipe.roles for name, p in adapter(lm.model, role).items()}
    for parameter in found.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return found


def _groups(trained: dict[str, nn.Parameter], recipe: RetrofitRecipe) -> list[Group]:
    """Matrices decay; norms and biases do not. (0.9, 0.95) is inferred: the paper does not say."""
    matrices = tuple(name for name, p in trained.items() if p.ndim > 1)
    others = tuple(name for name in trained if name not in matrices)
    return [
        Group("adamw", matrices, 1.0, recipe.weight_decay, (0.9, 0.95)),
        Group("adamw", others, 1.0, 0.0, (0.9, 0.95)),
    ]


def run_retrofit(run: RetrofitRun, steps: int | None, again: bool) -> None:
    """From the beginning, or with `again` from the last checkpoint; `steps` None: as many as the recipe has."""
    num_steps = steps or run.recipe.num_steps
    task = continual(run, num_steps)
    if again:
        loop.resume(run, task)
    stage_begins(run, STAGE, run.recipe, again=again)
    loop.train(run, task, num_steps)
    stage_ends(run, STAGE)


def export_retrofit(run: RetrofitRun, folder: Path) -> None:
    """Adapters by PEFT's names, or the whole model in Hugging Face's format; in the recipe's type.

    Of memory `remanence.json` says what the model was trained for.
    """
    if not checkpoint.exists(run.folder / STAGE):
        raise InputError(f"{str(run.folder)!r} holds no checkpoint", "train first, or name the folder with --out")
    loop.load_weights(run, STAGE)
    recipe, config = run.recipe, run.config
    names = ("memory_layers", "kept_tokens", "reference_tokens")
    settings: dict[str, Any] = {"memory3": {name: getattr(config, name) for name in names}}
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.lora is None:
        run.lm.model.save_pretrained(folder)
        run.lm.tokenizer.save_pretrained(folder)
    else:
        is_folder = recipe.base not in BUNDLED and Path(recipe.base).is_dir()
        base = str(Path(recipe.base).resolve()) if is_folder else recipe.base
        dtype = torch.bfloat16 if recipe.dtype == "bfloat16" else None
        for role in recipe.roles:
            save_adapter(run.lm.model, role, folder / role, recipe.lora, base, dtype)
        settings = {"adapter": {"base": base, "roles": list(recipe.roles)}, **settings}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
