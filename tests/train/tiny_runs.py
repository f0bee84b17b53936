"""The recipes of nano at a tiny size, in float32 and with small steps: what tests train.

`python -m tests.train.tiny_runs` stores the losses of 50 steps of each in `tests/golden/losses.json`. Large steps would
make small differences between machines grow within 50 steps; Muon rounds to bfloat16 on every machine.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from remanence.lm.lora import LoraConfig
from remanence.train.core import loop, stages
from remanence.train.core.loop import Run, Task
from remanence.train.core.shapes import Shape
from remanence.train.examples.corpora import Corpora
from remanence.train.finetune.chat import dpo_task, sft_task, start_chat_run
from remanence.train.finetune.retrofit import retrofit_task, start_retrofit_run
from remanence.train.memory3.continual import memory_task
from remanence.train.memory3.nano import load_or_train_tokenizer, start_run
from remanence.train.memory3.sequences import sequence_task
from remanence.train.memory3.warmup import warmup_task
from remanence.train.mplus.stages import begin_after, mplus_task, start_mplus_run
from remanence.train.recipes import recipe_of
from remanence.train.recipes.chat import CHAT_STAGES, ChatPhase, ChatRecipe, ChatStage
from remanence.train.recipes.nano import NanoPhase, NanoRecipe, nano
from remanence.train.recipes.nano_mplus import MPlusRecipe, nano_mplus
from remanence.train.recipes.nano_text import nano_text
from remanence.train.recipes.retrofit import RetrofitRecipe, retrofit
from remanence.train.trainers import TRAINERS
from tests.train.tiny_sequences import begin_run, make, tiny

STEPS = 50
LOSSES = Path(__file__).parents[1] / "golden" / "losses.json"
SHAPE = Shape(vocab_size=512, width=32, mlp_width=64, num_layers=2, num_heads=2, num_kv_heads=2, max_positions=512)
NAMES = ["Ada", "Bob", "Cleo", "Dora", "Emil", "Fern", "Gus", "Hal"]
PARAGRAPHS = [f"{name} went to the harbour with {other} to see the boats." for name in NAMES for other in NAMES]
STAGES = ("warmup", "continual", "control")


def smaller(recipe: NanoRecipe) -> NanoRecipe:
    def phase(given: NanoPhase) -> NanoPhase:
        plain = min(96, given.plain_tokens)
        return replace(given, num_steps=15, rows=3, tokens=min(96, given.tokens), plain_tokens=plain)

    return replace(
        recipe,
        shape=SHAPE,
        warmup=tuple(phase(given) for given in recipe.warmup),
        continual=tuple(phase(given) for given in recipe.continual),
        tokenizer_groups=40,
        warmup_steps=10,
        matrix_lr=2e-4,
        other_lr=1e-4,
        eval_every=1000,
        dtype="float32",
    )


def smaller_latent(recipe: MPlusRecipe) -> MPlusRecipe:
    method = {**recipe.method, "chunk_tokens": 24, "min_chunk_tokens": 4, "write_rows": 8, "pool_blocks": 4}
    return replace(
        recipe,
        base="tiny",
        lora=LoraConfig(rank=4, alpha=8, dropout=0.0),
        method={**method, "long_blocks": 2, "key_width": 8},
        stages=tuple(replace(stage, num_steps=15, documents=3) for stage in recipe.stages),
        read_long_rows=(12, 16),
        past_writes=4,
        kept_rows=200,
        max_questions=4,
        projector_documents=64,
        sharpness=3.0,
        warmup_steps=10,
        lr=1e-4,
        projector_lr=3e-5,
        eval_every=1000,
        dtype="float32",
    )


def begin(folder: Path, recipe: NanoRecipe, stage: str, num_steps: int = STEPS) -> tuple[Run, Task]:
    """A run at the first step of a stage; after the warm-up where it follows one."""
    load_or_train_tokenizer(recipe, Corpora(), folder / "tokenizer")
    run = start_run(recipe, None, folder)
    run.corpora = Corpora(paragraphs=PARAGRAPHS, heldout_paragraphs=PARAGRAPHS[:8])
    run.log_every, run.save_seconds = 1000, 1e9
    if stage == "warmup":
        return run, warmup_task(run)
    loop.load_weights(run, "warmup")
    return run, replace(memory_task(run, num_steps, stage), ends=loop.nothing)


def smaller_chat() -> ChatRecipe:
    return ChatRecipe(
        base="tiny",
        lora=LoraConfig(rank=4, alpha=8, dropout=0.0),
        sft=ChatPhase(STEPS, lr=3e-3, groups=2, questions=3, passages=(1, 2)),
        dpo=ChatPhase(STEPS, lr=1e-3, groups=2, questions=2, passages=(1, 2)),
        eval_every=1000,
        dtype="float32",
    )


def begin_chat(folder: Path, recipe: ChatRecipe, stage: ChatStage, num_steps: int = STEPS) -> tuple[Run, Task]:
    """A run at the first step of a stage; DPO's reference is the model as it begins."""
    run = start_chat_run(recipe, None, folder)
    run.log_every, run.save_seconds = 1000, 1e9
    return run, replace({"sft": sft_task, "dpo": dpo_task}[stage](run, num_steps), ends=loop.nothing)


def begin_latent(folder: Path, recipe: MPlusRecipe, num_steps: int = STEPS) -> tuple[Run, Task]:
    run = start_mplus_run(recipe, recipe.base, None, folder)
    run.log_every, run.save_seconds = 1000, 1e9
    return run, mplus_task(run, num_steps)


def begin_sequences(folder: Path, stage: str, num_steps: int = STEPS) -> tuple[Run, Task]:
    """On the sequences beside `folder`; continual training after the warm-up."""
    recipe = tiny(recipe_of(f"memory3/{stage}"))
    run = begin_run(replace(recipe, lr=1e-3, num_steps=num_steps), folder.parent / "sequences", folder)
    run.log_every = 1000
    if run.recipe.after:
        loop.load_weights(run, run.recipe.after)
    return run, replace(sequence_task(run), ends=loop.nothing)


def begin_mplus(folder: Path, stage: str, num_steps: int = STEPS) -> tuple[Run, Task]:
    """After the stage before it."""
    recipe = smaller_latent(recipe_of(f"mplus/{stage}"))
    recipe = replace(recipe, projector_documents=0 if recipe.after else 64, lr=1e-3)
    run, task = begin_latent(folder, recipe, num_steps)
    if recipe.after:
        begin_after(run, recipe.after)
    return run, task


def smaller_retrofit() -> RetrofitRecipe:
    return replace(
        retrofit(),
        base="tiny",
        lora=LoraConfig(rank=4, alpha=8, dropout=0.0),
        groups=2,
        passages=(1, 2),
        questions=2,
        texts=1,
        text_tokens=64,
        reference_tokens=48,
        text_references=2,
        warmup_steps=10,
        lr=1e-2,
        eval_every=1000,
        dtype="float32",
    )


def begin_retrofit(folder: Path, recipe: RetrofitRecipe, num_steps: int = STEPS) -> tuple[Run, Task]:
    run = start_retrofit_run(recipe, None, folder)
    run.corpora = Corpora(paragraphs=PARAGRAPHS)
    run.log_every, run.save_seconds = 1000, 1e9
    return run, replace(retrofit_task(run, num_steps), ends=loop.nothing)


def run_stage(run: Any, stage: str, steps: int | None = None, resume: bool = False) -> None:
    """A stage of any run, as the command line makes it."""
    stages.run_stage(run, TRAINERS[type(run.recipe)].stage(run, stage, steps), resume=resume)


def losses(run: Run, task: Task, num_steps: int = STEPS) -> list[float]:
    """The loss of every step."""
    found: list[float] = []

    def watched(number: int) -> Any:
        loss, tokens = task.loss(number)
        found.append(float(loss.detach()))
        return loss, tokens

    loop.train(run, replace(task, loss=watched), num_steps)
    return found


def all_losses(folder: Path) -> dict[str, list[float]]:
    """Of every recipe of nano and each of its stages, on one thread: how sums are cut into parts decides near ties."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _all_losses(folder)
    finally:
        torch.set_num_threads(threads)


def _all_losses(folder: Path) -> dict[str, list[float]]:
    found = {}
    for name, recipe in (("nano", smaller(nano())), ("nano-text", smaller(nano_text()))):
        for stage in STAGES:
            found[f"{name}/{stage}"] = losses(*begin(folder / name, recipe, stage))
    found["nano-mplus"] = losses(*begin_latent(folder / "nano-mplus", smaller_latent(nano_mplus())))
    for stage in CHAT_STAGES:
        found[f"nano-chat/{stage}"] = losses(*begin_chat(folder / f"nano-chat-{stage}", smaller_chat(), stage))
    make(folder / "sequences")  # nothing else of the folder is read
    for stage in ("warmup", "continual"):
        found[f"memory3/{stage}"] = losses(*begin_sequences(folder / "sequences" / "memory3", stage))
    for stage in ("stage1", "stage2", "stage3"):
        found[f"mplus/{stage}"] = losses(*begin_mplus(folder / "mplus", stage))
    found["retrofit"] = losses(*begin_retrofit(folder / "retrofit", smaller_retrofit()))
    return found


if __name__ == "__main__":
    from remanence.lm import lm as lm_module

    lm_module.proof.prove = lambda model: None  # random tiny weights prove nothing
    with tempfile.TemporaryDirectory() as name:
        LOSSES.write_text(json.dumps(all_losses(Path(name)), indent=0) + "\n", encoding="utf-8")
