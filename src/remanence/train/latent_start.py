"""Prepares a run of M+: a base model with fresh adapters, its method, corpora and optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from remanence.errors import InputError
from remanence.lm.lm import LM
from remanence.lm.load import load
from remanence.lm.lora import add_roles, role_parameters
from remanence.methods.mplus.method import MPlus, MPlusConfig
from remanence.train import checkpoint, loop, parallel
from remanence.train.corpora import load_or_skip
from remanence.train.latent_run import MPlusRun, groups, restore, trained_parameters
from remanence.train.model import use_fast_attention
from remanence.train.optimizer import Optimizer
from remanence.train.projector_start import match_words
from remanence.train.recipes.nano_mplus import MPlusRecipe
from remanence.train.rows import Encoder


def start_latent_run(
    recipe: MPlusRecipe, base: str, data: Path | None, folder: Path, *, skip_damaged: bool = False
) -> MPlusRun:
    """A run at step 0. The base's weights stay as they are, in the recipe's type; what is trained is float32."""
    parallel.start()
    if parallel.size() > 1:
        raise InputError("a pool is one process's: M+ is not trained by many", "start it without torchrun")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    lm = _prepared(recipe, base)
    method = MPlus(MPlusConfig(**recipe.method, capacity_rows=recipe.kept_rows, merge_writes=16))
    torch.manual_seed(recipe.seed)
    method.modules(lm).float()
    trained = trained_parameters(lm, method)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = Optimizer(trained, groups(trained, recipe), recipe.clip_norm)
    pool = method.fresh(lm, recipe.seed)
    pool_LNC = torch.randn_like(pool.row_LNC, dtype=torch.float32) * 0.5
    pool = replace(pool, row_LNC=pool_LNC)
    run = MPlusRun(
        folder,
        optimizer,
        recipe.guard,
        data=data,
        recipe=recipe,
        lm=lm,
        method=method,
        encoder=Encoder(lm.tokenizer),
        corpora=load_or_skip(data, folder, skip_damaged),
        pool=pool,
    )
    if recipe.projector_documents:
        match_words(run, recipe.projector_documents)
    return run


def begin_after(run: MPlusRun, stage: str) -> None:
    """With what another stage in the run's folder has ended with: weights, pool, long-term memory, documents.

    Of a larger pool the newest rows stay (inferred: the paper's third stage has ten blocks fewer).
    """
    if not checkpoint.exists(run.folder / stage):
        own, where = run.recipe.stage, str(run.folder)
        raise InputError(f"{own} begins with the weights of {stage}, which {where!r} does not hold", "train it first")
    found = loop.load_weights(run, stage)
    restore(run, found.tensors, found.progress["values"])
    rows = run.method.config.pool_rows
    if run.pool.row_LNC.shape[1] < rows:
        raise InputError(
            f"the pool of {stage} has {run.pool.row_LNC.shape[1]} rows, {run.recipe.stage} asks for {rows}",
            "give both the same write_rows x pool_blocks",
        )
    run.pool = replace(run.pool, row_LNC=run.pool.row_LNC[:, -rows:], born_LN=run.pool.born_LN[:, -rows:])


def _prepared(recipe: MPlusRecipe, base: str) -> LM:
    lm = load(base)
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)
        if recipe.dtype == "bfloat16":
            parameter.data = parameter.data.bfloat16()
    add_roles(lm.model, recipe.lora)
    for parameter in role_parameters(lm.model):
        parameter.data = parameter.data.float()
    use_fast_attention(lm.model)
    return lm
