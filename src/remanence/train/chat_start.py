"""Prepares a run of SFT or DPO from a model that reads memory, and writes what comes out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from remanence.errors import InputError
from remanence.lm.lm import LM, SETTINGS, load
from remanence.lm.lora import adapter, add_roles, save_adapter
from remanence.methods.memory3 import paper
from remanence.train import checkpoint, loop, parallel
from remanence.train.chat import ChatRun, dpo, sft
from remanence.train.conversations import read_conversations
from remanence.train.corpora import load_or_skip
from remanence.train.folder import stage_begins, stage_ends
from remanence.train.loop import Task
from remanence.train.model import compute_layers_again, use_fast_attention
from remanence.train.optimizer import Group, Optimizer
from remanence.train.recipes.chat import ChatRecipe, ChatStage
from remanence.train.rows import Encoder

TASKS: dict[ChatStage, Callable[[ChatRun, int], Task]] = {"sft": sft, "dpo": dpo}
AFTER: dict[ChatStage, ChatStage | None] = {"sft": None, "dpo": "sft"}


def start_chat_run(recipe: ChatRecipe, data: Path | None, folder: Path, *, skip_damaged: bool = False) -> ChatRun:
    """A run at step 0. With an adapter the base stays as it is, in the recipe's type; what is trained is float32."""
    parallel.start()
    if parallel.size() > 1:
        raise InputError("SFT and DPO are made by one process", "start it without torchrun")
    if not recipe.base:
        raise InputError("this recipe goes on from a model of yours", "give it with --start FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    told = read_conversations(Path(recipe.conversations)) if recipe.conversations else []
    lm = load(recipe.base)
    settings = {**lm.settings.get("memory3", {}), "refresh_tokens": None}
    torch.manual_seed(recipe.seed)
    trained = _prepared(lm, recipe)
    lm.drop_constants()
    names = tuple(trained)
    groups = [Group("adamw", names, 1.0, recipe.weight_decay, (0.9, 0.95))]
    return ChatRun(
        folder,
        Optimizer(trained, groups, recipe.clip_norm),
        recipe.guard,
        data=data,
        recipe=recipe,
        lm=lm,
        config=_config(lm, settings),
        encoder=Encoder(lm.tokenizer),
        corpora=load_or_skip(data, folder, skip_damaged),
        conversations=told,
    )


def _config(lm: LM, settings: dict[str, Any]) -> Any:
    return replace(paper(lm), **settings)


def _frozen(lm: LM, recipe: ChatRecipe) -> None:
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)
        if recipe.dtype == "bfloat16":
            parameter.data = parameter.data.bfloat16()
    use_fast_attention(lm.model)


def _prepared(lm: LM, recipe: ChatRecipe) -> dict[str, nn.Parameter]:
    """What is trained, by name: all weights, or an adapter that text is read with."""
    if recipe.checkpointing:
        compute_layers_again(lm.model)
    if recipe.lora is None:
        use_fast_attention(lm.model)
        return dict(lm.model.named_parameters())
    _frozen(lm, recipe)
    add_roles(lm.model, recipe.lora, ("read",))
    lm.reads_as = "read"
    trained = adapter(lm.model, "read")
    for parameter in trained.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return trained


def run_chat_stage(run: ChatRun, stage: ChatStage, steps: int | None, again: bool) -> None:
    """A stage from its beginning, or with `again` from its last checkpoint; DPO begins with what SFT ended with."""
    if stage == "dpo" and any(one.rejected is None for one in run.conversations):
        raise InputError("DPO needs a rejected answer for each conversation", 'write "rejected" on each line')
    if after := AFTER[stage]:
        if not checkpoint.exists(run.folder / after):
            raise InputError(f"dpo begins with the weights of sft, which {str(run.folder)!r} does not hold", "train it")
        loop.load_weights(run, after)
    num_steps = steps or run.recipe.phase_of(stage).num_steps
    task = TASKS[stage](run, num_steps)
    if again:
        loop.resume(run, task)
    stage_begins(run, stage, run.recipe, again=again)
    loop.train(run, task, num_steps)
    stage_ends(run, stage)


def export_chat(run: ChatRun, folder: Path) -> None:
    """A folder that `load` reads: the adapter by PEFT's names, or the whole model in Hugging Face's format.

    With the weights of the last stage that was trained.
    """
    last = next((stage for stage in ("dpo", "sft") if checkpoint.exists(run.folder / stage)), None)
    if last is None:
        raise InputError(f"{str(run.folder)!r} holds no checkpoint", "train first, or name the folder with --out")
    loop.load_weights(run, last)
    settings: dict[str, Any] = {name: value for name, value in run.lm.settings.items() if name != "adapter"}
    folder.mkdir(parents=True, exist_ok=True)
    if run.recipe.lora is None:
        run.lm.model.to(torch.bfloat16).save_pretrained(folder)
        run.lm.tokenizer.save_pretrained(folder)
    else:
        save_adapter(run.lm.model, "read", folder / "read", run.recipe.lora, run.recipe.base, torch.bfloat16)
        settings = {"adapter": {"base": run.recipe.base, "roles": ["read"]}, **settings}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
