"""What a recipe would take, said before anything is allocated: parameters, tokens, FLOPs, bytes and hours."""

from __future__ import annotations

from typing import Any

from remanence.errors import InputError
from remanence.train.cost import PEAK_FLOPS, MemoryShape, forward_flops, read_flops, training_flops, write_flops
from remanence.train.estimate_further import estimate_further
from remanence.train.recipes.chat import ChatRecipe
from remanence.train.recipes.nano import STAGES, Phase, Recipe, Stage
from remanence.train.recipes.nano_mplus import MPlusRecipe
from remanence.train.recipes.retrofit import RetrofitRecipe
from remanence.train.recipes.sequences import SequenceRecipe
from remanence.train.shapes import Shape

USE = 0.4
"""The share of a GPU's peak that well-made training gets (MFU): an assumption, not a measurement."""
PROCESSES = (1, 8)


def estimate(recipe: Any) -> dict[str, Any]:
    """Of every stage its steps, tokens and FLOPs; hours on one GPU; the model's bytes on each device of so many.

    Activations are not counted: they depend on kernels and checkpointing. InputError for a recipe whose cost is not
    known.
    """
    if isinstance(recipe, MPlusRecipe | RetrofitRecipe | ChatRecipe):
        return with_hours(estimate_further(recipe))
    if not isinstance(recipe, Recipe | SequenceRecipe):
        raise InputError(
            f"{type(recipe).__name__} is a recipe of an adapter, which --dry-run does not know",
            "use nano, mplus/stage1 or retrofit",
        )
    if isinstance(recipe, SequenceRecipe):
        stages = {recipe.stage: _sequences(recipe)}
    else:
        stages = {name: _stage(recipe, STAGES[name]) for name in recipe.stages if name != "export"}
    return with_hours(
        {
            "parameters": recipe.shape.num_parameters,
            "stages": stages,
            "bytes_per_device": {str(processes): state_bytes(recipe, processes) for processes in PROCESSES},
        }
    )


def with_hours(told: dict[str, Any]) -> dict[str, Any]:
    """`told` with the sums over its stages, and hours."""
    stages = told["stages"].values()
    flops = sum(found["flops"] for found in stages)
    hours = {name: flops / (USE * peak) / 3600 for name, peak in PEAK_FLOPS.items()}
    return {**told, "tokens": sum(found["tokens"] for found in stages), "flops": flops, "hours_on_one": hours}


def state_bytes(recipe: Recipe | SequenceRecipe, processes: int) -> int:
    """Weights, gradients, float32 masters and optimizer.

    One process holds all of it; of many, each its shards (all float32) and, while it computes, the gathered weights.
    """
    shape, low = recipe.shape, 2 if recipe.dtype == "bfloat16" else 4
    total = shape.num_parameters
    matrices = shape.num_layers * shape.layer_parameters
    moments = 4 * (matrices if recipe.matrix_rule == "muon" else 2 * matrices) + 8 * (total - matrices)
    if processes == 1:
        return total * (2 * low + 4 if low == 2 else 8) + moments
    return -(-(total * 8 + moments) // processes) + total * low


def _sequences(recipe: SequenceRecipe) -> dict[str, float]:
    """Without what `checkpointing` computes again."""
    memory = recipe.memory if recipe.reads else None
    row = training_flops(recipe.shape, recipe.sequence_tokens, memory, stop_gradient=not recipe.writes)
    steps = recipe.num_steps
    return {"steps": steps, "tokens": steps * recipe.step_tokens, "flops": steps * recipe.rows * row}


def _stage(recipe: Recipe, stage: Stage) -> dict[str, float]:
    phases, steps = recipe.phases_of(stage), recipe.num_steps_of(stage)
    tokens = sum(phase.num_steps * phase.rows * phase.tokens for phase in phases)
    flops = sum(phase.num_steps * phase.rows * _row_flops(recipe.shape, phase, stage) for phase in phases)
    return {"steps": steps, "tokens": tokens, "flops": flops}


def _row_flops(shape: Shape, phase: Phase, stage: Stage) -> float:
    """Forward and backward of one row; with memory, of as many references of 128 tokens as it has at most."""
    flops = 3 * forward_flops(shape, phase.tokens)
    if not stage.reads:
        return flops
    memory = MemoryShape(kept_tokens=phase.slots or 128, chunk_tokens=phase.tokens)
    references = phase.passages[1]
    written = (3 if stage.writes else 1) * write_flops(shape, memory)
    return flops + references * (written + 3 * read_flops(shape, memory))
