"""Stored sequences of a few invented texts, and Memory³'s recipes at a size that trains on them in a second."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

from remanence.lm.tiny import byte_tokenizer
from remanence.train.core import loop
from remanence.train.core.loop import Task
from remanence.train.core.shapes import MemoryShape, Shape
from remanence.train.examples.build_sequences import build
from remanence.train.examples.references import Cutting
from remanence.train.memory3.sequences import SequenceRun, sequence_task, start_sequence_run
from remanence.train.recipes.sequences import SequenceRecipe, continual_nano, warmup_nano

NAMES = "Ada Bob Cleo Dora Emil Fern Gus Hal".split()
PLACES = "harbour bridge garden market island tower".split()
CUTTING = Cutting(sequence_tokens=64, chunk_tokens=16, reference_tokens=32)
SHAPE = Shape(259, 32, 48, 4, 4, 2, 256, tied=False)
STEPS = 8


def make(folder: Path) -> Path:
    """`folder/sequences`, with a part that is kept for evaluation."""
    rng = Random(0)
    folder.mkdir(parents=True, exist_ok=True)

    def text() -> str:
        who = [rng.choice(NAMES) for _ in range(12)]
        return " ".join(f"{name} went to the {rng.choice(PLACES)} with {rng.choice(NAMES)}." for name in who)

    for name, count in (("some", 12), ("valid", 4)):
        lines = "".join(json.dumps({"text": text()}) + "\n" for _ in range(count))
        (folder / f"{name}.jsonl").write_text(lines)
    made = build(folder, folder / "sequences", byte_tokenizer(), CUTTING)
    assert made["train"].num_sequences > 30
    return folder / "sequences"


def tiny(recipe: SequenceRecipe) -> SequenceRecipe:
    return replace(
        recipe,
        shape=SHAPE,
        sequence_tokens=64,
        rows=6,
        num_steps=STEPS,
        lr=1e-2,
        warmup_steps=2,
        memory=MemoryShape(reference_tokens=32, kept_tokens=4, chunk_tokens=16, memories=3),
        dtype="float32",
        eval_every=1000,
        eval_rows=9,
    )


def begin_run(recipe: SequenceRecipe, data: Path | str, folder: Path) -> SequenceRun:
    run = start_sequence_run(recipe, data, folder)
    run.log_every, run.save_seconds = 1, 1e9
    return run


def begin_stage(folder: Path, stage: str) -> tuple[SequenceRun, Task]:
    """A run at the first step, with small steps, on sequences beside its folder."""
    recipe = {"warmup": warmup_nano, "continual": continual_nano}[stage]()
    run = begin_run(replace(tiny(recipe), lr=1e-4, parts=2), folder.parent / "sequences", folder)
    if run.recipe.after:
        loop.load_weights(run, run.recipe.after)
    return run, sequence_task(run)
