"""Memory³'s Figure 11 at nano's scale: when memory helps, and whether the writing needs a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.measurement import envelope
from remanence.train.core import checkpoint
from remanence.train.core.curves import axes_of, read_log
from remanence.train.core.stages import run_stage
from remanence.train.memory3.nano import nano_stage, start_run
from remanence.train.memory3.warmup import ENDS_ROWS
from remanence.train.recipes.nano import STAGES, NanoRecipe, StageName

NAMES = {
    "warmup": "control from scratch",
    "scratch": "memory from scratch",
    "control": "control → control",
    "continual": "control → memory",
    "detached": "control → memory, no gradient through the writing",
    "scratch-continual": "memory → memory",
}


def train_missing(recipe: NanoRecipe, data: Path | None, folder: Path) -> None:
    """Trains all stages of the recipe that are not finished in `folder`; stages that were begun are resumed."""
    for stage in recipe.stages:
        if stage not in _finished(recipe, folder):
            run = start_run(recipe, data, folder)
            run_stage(run, nano_stage(run, stage), resume=checkpoint.exists(folder / stage))


def check(recipe: NanoRecipe) -> None:
    """InputError for a recipe whose stages or data do not fit the figure."""
    if set(recipe.stages) != set(NAMES) or any(phase.books != 1 for phase in (*recipe.warmup, *recipe.continual)):
        raise InputError("the figure compares six stages on running text", "do not change stages and books")


def _finished(recipe: NanoRecipe, folder: Path) -> set[StageName]:
    log = folder / "log.jsonl"
    stages = read_log(log) if log.exists() else {}
    return {
        name for name in recipe.stages if _ending(stages.get(name, {})).get("step") == recipe.num_steps_of(STAGES[name])
    }


def collect(recipe: NanoRecipe, folder: Path) -> dict[str, Any]:
    """The curves and figures of all stages, from the log. InputError if a stage is not finished.

    Losses are in nats per token of running text. `kept_*`: on held-out books, with the stage's memories and without.
    `crossing_step`: the step from which the training loss with memory stays below that of the control.
    """
    if missing := [name for name in recipe.stages if name not in _finished(recipe, folder)]:
        raise InputError(f"{str(folder)!r} has no finished stage {missing[0]!r}", "leave --read out, to train it")
    log = read_log(folder / "log.jsonl")
    runs: dict[str, dict[str, Any]] = {name: _run(log[name]) for name in recipe.stages}
    reads = {name: "kept_with_memory" if STAGES[name].reads else "kept_without" for name in recipe.stages}
    end = {name: runs[name][figure] for name, figure in reads.items()}
    start = runs["continual"]
    gains = {
        "memory_from_scratch_nats": end["warmup"] - end["scratch"],
        "control_to_memory_nats": end["control"] - end["continual"],
        "control_to_memory_detached_nats": end["control"] - end["detached"],
        "memory_to_memory_nats": end["control"] - end["scratch-continual"],
        "jump_nats": start["kept_with_memory_at_start"] - start["kept_without_at_start"],
    }
    conditions = {"rows": ENDS_ROWS, "parameters": recipe.shape.num_parameters}
    conditions |= {f"steps_{name}": recipe.num_steps_of(STAGES[name]) for name in ("warmup", "continual")}
    return envelope(
        "task",
        "figure11",
        runs,
        conditions=conditions,
        gains={name: round(value, 4) for name, value in gains.items()},
        crossing_step=crossing(start["curve"], runs["control"]["curve"]),
    )


def _run(records: dict[int, dict[str, Any]]) -> dict[str, Any]:
    last, first = _ending(records), records.get(0, {})
    return {
        "curve": [[step, record["loss_text"]] for step, record in sorted(records.items()) if "loss_text" in record],
        "kept_with_memory": last.get(f"loss_text_memory_{ENDS_ROWS}"),
        "kept_without": last.get(f"loss_text_none_{ENDS_ROWS}"),
        "kept_with_memory_at_start": first.get(f"loss_text_memory_{ENDS_ROWS}"),
        "kept_without_at_start": first.get(f"loss_text_none_{ENDS_ROWS}"),
    }


def _ending(records: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return next((record for step, record in sorted(records.items(), reverse=True) if step and _is_end(record)), {})


def _is_end(record: dict[str, Any]) -> bool:
    return f"loss_text_none_{ENDS_ROWS}" in record


def crossing(memory: Iterable[Sequence[float]], control: Iterable[Sequence[float]]) -> int | None:
    """The first step from which `memory` stays below `control` (lists of step, loss); None if it never does."""
    below = {point[0]: point[1] for point in control}
    since = None
    for step, loss in memory:
        if step in below and loss >= below[step]:
            since = None
        elif step in below and since is None:
            since = int(step)
    return since


def draw(result: dict[str, Any], picture: Path) -> None:
    """Draws the paper's two panels into `picture`: training from scratch, and continual training."""
    figure, panels = axes_of(2)
    for axes, names in zip(panels, (("warmup", "scratch"), tuple(NAMES)[2:]), strict=True):
        for name in names:
            axes.plot(*zip(*result["systems"][name]["curve"], strict=True), label=NAMES[name])
        axes.set_xlabel("step")
        axes.legend(loc="upper right", fontsize="small")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("training loss (nats per token)")
    panels[0].set_title("from scratch", fontsize="medium")
    panels[1].set_title("continual training", fontsize="medium")
    figure.savefig(picture, dpi=110)
