"""What `torchrun` starts in test_parallel.py: some steps of a tiny run, whose losses the first process prints."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from remanence.lm import lm as lm_module
from remanence.train.core import loop, parallel
from remanence.train.core.loop import Run, Task
from remanence.train.recipes.nano import nano
from remanence.train.recipes.nano_text import nano_text
from tests.train.tiny_runs import begin, losses, smaller
from tests.train.tiny_sequences import begin_stage

STEPS = 6


def recipe(name: str):
    """AdamW throughout: Muon rounds products of shards to bfloat16. Three rows are no equal shares for two."""
    found = smaller({"nano": nano, "nano-text": nano_text}[name]())
    phases = {part: tuple(replace(phase, rows=3) for phase in getattr(found, part)) for part in ("warmup", "continual")}
    return replace(found, matrix_rule="adamw", eval_every=3, **phases)


def pass_through(model: torch.nn.Module) -> None:
    """A forward pass as `prove` makes it; what it would measure on random tiny weights proves nothing."""
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))


def begin_any(name: str, stage: str, folder: Path) -> tuple[Run, Task]:
    return begin_stage(folder, stage) if name == "memory3" else begin(folder, recipe(name), stage, STEPS)


def run(name: str, stage: str, folder: Path, steps: int = STEPS, resume: bool = False) -> list[float]:
    """Losses of whole batches, as the first process has them."""
    lm_module.proof.prove = pass_through
    going, task = begin_any(name, stage, folder)
    going.save_seconds = 0.0 if parallel.rank() else 1e9  # clocks differ; one of them counts
    if resume:
        loop.resume(going, task)
    found = losses(going, task, steps)
    return [float(parallel.mean(torch.tensor(loss, dtype=torch.float64))) for loss in found]


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, stage, folder = sys.argv[1:]
    found = run(name, stage, Path(folder))
    if parallel.rank() == 0:
        print("losses " + json.dumps(found))
    parallel.leave()
