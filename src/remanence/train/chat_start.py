"""Prepares a run of SFT or DPO from a model that reads memory, and writes what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from remanence import methods
from remanence.errors import InputError
from remanence.methods.memory3.method import Memory3Config
from remanence.train import checkpoint, loop, parallel
from remanence.train.card import write_card
from remanence.train.chat import ChatRun, dpo, sft
from remanence.train.conversations import Conversation, read_conversations
from remanence.train.corpora import load_or_skip
from remanence.train.folder import stage_begins, stage_ends
from remanence.train.further import Further, load_base, prepared, write_out
from remanence.train.loop import Task
from remanence.train.recipes.chat import ChatRecipe, ChatStage
from remanence.train.rows import Encoder

TASKS: dict[ChatStage, Callable[[ChatRun, int], Task]] = {"sft": sft, "dpo": dpo}


def start_chat_run(recipe: ChatRecipe, data: Path | None, folder: Path, *, skip_damaged: bool = False) -> ChatRun:
    """A run at step 0; memory is read as the base reads it, once for each prompt."""
    parallel.start()
    if parallel.size() > 1:
        raise InputError("SFT and DPO are made by one process", "start it without torchrun")
    told: list[Conversation] = read_conversations(Path(recipe.conversations)) if recipe.conversations else []
    lm = load_base(recipe.base)
    config = methods.load("memory3", lm).config
    assert isinstance(config, Memory3Config)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    return ChatRun(
        folder,
        prepared(lm, further(recipe)),
        recipe.guard,
        data=data,
        recipe=recipe,
        lm=lm,
        config=replace(config, refresh_tokens=None),
        encoder=Encoder(lm.tokenizer),
        corpora=load_or_skip(data, folder, skip_damaged),
        conversations=told,
    )


def further(recipe: ChatRecipe) -> Further:
    """An adapter only reads: what the base has written stays valid."""
    return Further(
        recipe.base,
        recipe.lora,
        ("read",),
        recipe.dtype,
        recipe.weight_decay,
        recipe.clip_norm,
        recipe.checkpointing,
    )


def run_chat_stage(run: ChatRun, stage: ChatStage, steps: int | None, again: bool) -> None:
    """A stage from its beginning, or with `again` from its last checkpoint.

    DPO begins with what SFT ended with; where the recipe has no SFT and none was made, with the base as it is. SFT made
    anew takes what an earlier DPO left away.
    """
    if stage == "dpo":
        if any(one.rejected is None for one in run.conversations):
            raise InputError("DPO needs a rejected answer for each conversation", 'write "rejected" on each line')
        if checkpoint.exists(run.folder / "sft"):
            loop.load_weights(run, "sft")
        elif "sft" in run.recipe.stages:
            problem = f"dpo begins with the weights of sft, which {str(run.folder)!r} does not hold"
            raise InputError(problem, "train --stage sft first, or train memory3/dpo --start MODEL")
    elif not again:
        checkpoint.clear(run.folder / "dpo")
    num_steps = steps or run.recipe.phase_of(stage).num_steps
    task = TASKS[stage](run, num_steps)
    if again:
        loop.resume(run, task)
    stage_begins(run, stage, run.recipe, again=again)
    loop.train(run, task, num_steps)
    stage_ends(run, stage)


def export_chat(run: ChatRun, folder: Path) -> None:
    """A folder that `load` reads, with the weights of the recipe's last stage that was trained."""
    mine = [stage for stage in ("dpo", "sft") if stage in run.recipe.stages]
    last = next((stage for stage in mine if checkpoint.exists(run.folder / stage)), None)
    if last is None:
        problem = f"{str(run.folder)!r} holds no checkpoint of {' or '.join(mine)}"
        raise InputError(problem, "train first, or name the folder with --out")
    loop.load_weights(run, last)
    settings = {name: value for name, value in run.lm.settings.items() if name != "adapter"}
    write_out(run.lm, further(run.recipe), folder, settings)
    write_card(folder, run, run.recipe, {"method": "memory3", **asdict(run.config)})
