"""Prepares a run that gives an existing model memory, and writes what comes out of it as a folder that `load` reads."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from remanence.errors import InputError
from remanence.lm.lm import LM
from remanence.methods.memory3.method import Memory3Config, paper
from remanence.train import checkpoint, loop, parallel
from remanence.train.card import write_card
from remanence.train.corpora import load_or_skip
from remanence.train.folder import stage_begins, stage_ends
from remanence.train.further import Further, load_base, prepared, write_out
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
    lm = load_base(recipe.base)
    config = _config(lm, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    optimizer = prepared(lm, further(recipe))
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


def _config(lm: LM, recipe: RetrofitRecipe) -> Memory3Config:
    config = replace(paper(lm), reference_tokens=recipe.reference_tokens, kept_tokens=recipe.used_kept_tokens)
    if recipe.memory_layers is None:
        return config
    if odd := [layer for layer in recipe.memory_layers if not 0 <= layer < lm.dims.num_layers]:
        raise InputError(f"{lm.name} has no layer {odd[0]}", f"name some of 0 to {lm.dims.num_layers - 1}")
    return replace(config, memory_layers=tuple(sorted(set(recipe.memory_layers))))


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
    write_out(run.lm, further(recipe), folder, {"memory3": {name: getattr(config, name) for name in names}})
    write_card(folder, run, recipe, {"method": "memory3", **asdict(config)})


def further(recipe: RetrofitRecipe) -> Further:
    return Further(
        recipe.base,
        recipe.lora,
        recipe.roles,
        recipe.dtype,
        recipe.weight_decay,
        recipe.clip_norm,
        recipe.checkpointing,
    )
