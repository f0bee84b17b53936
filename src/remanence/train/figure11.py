"""Memory³'s Figure 11 at nano's scale: when does memory help, and must gradients go through its writing?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.provenance import commit, machine
from remanence.train import checkpoint
from remanence.train.curves import axes_of, read_log
from remanence.train.plain import ENDS_ROWS
from remanence.train.recipes.nano import STAGES, Recipe, StageName
from remanence.train.start import run_stage, start_run

NAMES = {
    "warmup": "control from scratch",
    "scratch": "memory from scratch",
    "control": "control → control",
    "continual": "control → memory",
    "detached": "control → memory, no gradient through the writing",
    "scratch-continual": "memory → memory",
}


def train_missing(recipe: Recipe, data: Path | None, folder: Path) -> None:
    """Trains every stage of the recipe that `folder` has not finished; what was begun goes on."""
    for stage in recipe.stages:
        if stage not in _finished(recipe, folder):
            run_stage(start_run(recipe, data, folder), stage, None, checkpoint.exists(folder / stage))


def check(recipe: Recipe) -> None:
    """InputError for a recipe that the figure cannot be made of."""
    if set(recipe.stages) != set(NAMES) or any(phase.books != 1 for phase in (*recipe.warmup, *recipe.continual)):
        raise InputError("the figure compares six stages on running text", "leave stages and books as they are")


def _finished(recipe: Recipe, folder: Path) -> set[StageName]:
    log = folder / "log.jsonl"
    found = read_log(log) if log.exists() else {}
    return {
        name for name in recipe.stages if _ending(found.get(name, {})).get("step") == recipe.num_steps_of(STAGES[name])
    }


def collect(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The curves and what they say, out of the log; InputError where a stage has not come to its end.

    Losses are nats per token of running text. `kept`: of books that training never saw, with the stage's memories (its
    own way of reading), and without. `crossing_step`: from which line of the log on memory's training loss stays below
    the control's.
    """
    if missing := [name for name in recipe.stages if name not in _finished(recipe, folder)]:
        raise InputError(f"{str(folder)!r} has no finished stage {missing[0]!r}", "train it: leave --read out")
    log = read_log(folder / "log.jsonl")
    runs = {name: _run(log[name]) for name in recipe.stages}
    end = {name: run["kept_with_memory" if STAGES[name].reads else "kept_without"] for name, run in runs.items()}
    begun = runs["continual"]
    gains = {
        "memory_from_scratch_nats": end["warmup"] - end["scratch"],
        "control_to_memory_nats": end["control"] - end["continual"],
        "control_to_memory_detached_nats": end["control"] - end["detached"],
        "memory_to_memory_nats": end["control"] - end["scratch-continual"],
        "jump_nats": begun["kept_with_memory_at_start"] - begun["kept_without_at_start"],
    }
    conditions = {"rows": ENDS_ROWS, "parameters": recipe.shape.num_parameters}
    conditions |= {f"steps_{name}": recipe.num_steps_of(STAGES[name]) for name in ("warmup", "continual")}
    return {
        "task": "figure11",
        "commit": commit(),
        "machine": machine(),
        "conditions": conditions,
        "systems": runs,
        "gains": {name: round(value, 4) for name, value in gains.items()},
        "crossing_step": crossing(begun["curve"], runs["control"]["curve"]),
    }


def _run(records: dict[int, dict[str, Any]]) -> dict[str, Any]:
    last, first = _ending(records), records.get(0, {})
    return {
        "curve": [[step, told["loss_text"]] for step, told in sorted(records.items()) if "loss_text" in told],
        "kept_with_memory": last.get(f"loss_text_memory_{ENDS_ROWS}"),
        "kept_without": last.get(f"loss_text_none_{ENDS_ROWS}"),
        "kept_with_memory_at_start": first.get(f"loss_text_memory_{ENDS_ROWS}"),
        "kept_without_at_start": first.get(f"loss_text_none_{ENDS_ROWS}"),
    }


def _ending(records: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return next((told for step, told in sorted(records.items(), reverse=True) if step and _is_end(told)), {})


def _is_end(told: dict[str, Any]) -> bool:
    return f"loss_text_none_{ENDS_ROWS}" in told


def crossing(memory: list[list[float]], control: list[list[float]]) -> int | None:
    """The first step from which `memory` stays below `control`; None where it never does."""
    below = dict(control)
    found = None
    for step, loss in memory:
        if step in below and loss >= below[step]:
            found = None
        elif step in below and found is None:
            found = int(step)
    return found


def draw(result: dict[str, Any], picture: Path) -> None:
    """The paper's two panels: from scratch, and continual training of what has been trained."""
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
