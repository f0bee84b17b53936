"""What a recipe takes before anything is allocated: parameters, tokens, FLOPs, bytes and hours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.lm.folders import BUNDLED
from remanence.lm.lora import LoraConfig
from remanence.train.core.shapes import SHAPES, MemoryShape, Shape
from remanence.train.cost.flops import PEAK_FLOPS, forward_flops, read_flops, training_flops, write_flops
from remanence.train.recipes.chat import ChatRecipe, ChatStage
from remanence.train.recipes.nano import STAGES, NanoPhase, NanoRecipe, NanoStage
from remanence.train.recipes.nano_mplus import MPlusPhase, MPlusRecipe
from remanence.train.recipes.retrofit import RetrofitRecipe
from remanence.train.recipes.sequences import SequenceRecipe

USE = 0.4
"""Assumed share of a GPU's peak that training reaches (MFU)."""
PROCESSES = (1, 8)


def estimate(recipe: Any) -> dict[str, Any]:
    """What a recipe takes, as JSON values: steps, tokens and FLOPs of each stage, hours on one GPU, bytes per device.

    Bytes are of weights, gradients, masters and optimizer, for 1 and for 8 devices; activations depend on kernels and
    checkpointing. InputError for a recipe whose cost is not known.
    """
    if isinstance(recipe, MPlusRecipe | RetrofitRecipe | ChatRecipe):
        return _with_hours(estimate_finetune(recipe))
    if not isinstance(recipe, NanoRecipe | SequenceRecipe):
        raise InputError(
            f"the cost of a {type(recipe).__name__} is not known",
            "use nano, mplus/stage1 or retrofit",
        )
    if isinstance(recipe, SequenceRecipe):
        stages = {recipe.stage: _sequences(recipe)}
    else:
        stages = {name: _stage(recipe, STAGES[name]) for name in recipe.stages if name != "export"}
    return _with_hours(
        {
            "parameters": recipe.shape.num_parameters,
            "stages": stages,
            "bytes_per_device": {str(processes): state_bytes(recipe, processes) for processes in PROCESSES},
        }
    )


def _with_hours(result: dict[str, Any]) -> dict[str, Any]:
    """`result` with the sums over its stages, and hours."""
    stages = result["stages"].values()
    flops = sum(stage["flops"] for stage in stages)
    hours = {name: flops / (USE * peak) / 3600 for name, peak in PEAK_FLOPS.items()}
    return {**result, "tokens": sum(stage["tokens"] for stage in stages), "flops": flops, "hours_on_one": hours}


def state_bytes(recipe: NanoRecipe | SequenceRecipe, processes: int) -> int:
    """Bytes of weights, gradients, float32 masters and optimizer on each device.

    A single process holds all of them. Each of several holds its float32 shards and, while it computes, the gathered
    weights.
    """
    shape, low = recipe.shape, 2 if recipe.dtype == "bfloat16" else 4
    total = shape.num_parameters
    matrices = shape.num_layers * shape.layer_parameters
    moments = 4 * (matrices if recipe.matrix_rule == "muon" else 2 * matrices) + 8 * (total - matrices)
    if processes == 1:
        return total * (2 * low + 4 if low == 2 else 8) + moments
    return -(-(total * 8 + moments) // processes) + total * low


def _sequences(recipe: SequenceRecipe) -> dict[str, float]:
    """Without the second forward pass of `checkpointing`."""
    memory = recipe.memory if recipe.reads else None
    row = training_flops(recipe.shape, recipe.sequence_tokens, memory, stop_gradient=not recipe.writes)
    steps = recipe.num_steps
    return {"steps": steps, "tokens": steps * recipe.step_tokens, "flops": steps * recipe.rows * row}


def _stage(recipe: NanoRecipe, stage: NanoStage) -> dict[str, float]:
    phases, steps = recipe.phases_of(stage), recipe.num_steps_of(stage)
    tokens = sum(phase.num_steps * phase.rows * phase.tokens for phase in phases)
    flops = sum(phase.num_steps * phase.rows * _row_flops(recipe.shape, phase, stage) for phase in phases)
    return {"steps": steps, "tokens": tokens, "flops": flops}


def _row_flops(shape: Shape, phase: NanoPhase, stage: NanoStage) -> float:
    """FLOPs of one example, forward and backward; with memory, also of its most references, of 128 tokens each."""
    flops = 3 * forward_flops(shape, phase.tokens)
    if not stage.reads:
        return flops
    memory = MemoryShape(kept_tokens=phase.slots or 128, chunk_tokens=phase.tokens)
    references = phase.passages[1]
    written = (3 if stage.writes else 1) * write_flops(shape, memory)
    return flops + references * (written + 3 * read_flops(shape, memory))


KNOWN = {
    "meta-llama/Llama-3.1-8B": SHAPES["llama-3.1-8b"],
    "memory3-0.9b": SHAPES["0.9b"],
    "memory3-2b": SHAPES["2b"],
}
"""Shapes of bases that need not be on the disk."""
QUESTION_TOKENS = 64
"""Assumed length of a question in retrofit: its recipe does not say."""
FROZEN = 2
"""Cost of a forward and a backward pass through frozen weights, in forward passes."""


def estimate_finetune(recipe: MPlusRecipe | RetrofitRecipe | ChatRecipe) -> dict[str, Any]:
    """The estimate of a recipe with a base, from the base's shape; tokens and FLOPs are upper bounds.

    One process holds everything. `host_bytes`: long-term memory in the host's RAM.
    """
    shape = shape_of(recipe.base)
    if isinstance(recipe, MPlusRecipe):
        trained, stages = _mplus_parameters(shape, recipe), {recipe.stage: _mplus_stage(shape, recipe)}
        C, low = shape.width, _low(recipe)
        pool_bytes = shape.num_layers * C * 2 * 4 * recipe.method["write_rows"] * recipe.method["pool_blocks"]
        num_bytes = (
            shape.num_parameters * low + trained * 16 + pool_bytes
        )  # of the pool, and of the one that the run began with
        long = shape.num_layers * recipe.kept_rows * (C + recipe.method["key_width"]) * 2
        return _told(shape, trained, stages, num_bytes) | {"host_bytes": long}
    if isinstance(recipe, ChatRecipe):
        stages: dict[str, Any] = {name: _chat_stage(shape, recipe, name) for name in recipe.stages if name != "export"}
        num_roles, keeps_start = 1, "dpo" in recipe.stages
    else:
        stages = {"continual": _retrofit_stage(shape, recipe)}
        num_roles, keeps_start = len(recipe.roles), bool(recipe.plain_every)
    if recipe.lora is None:
        low, total = _low(recipe), shape.num_parameters
        num_bytes = total * (2 * low + (4 if low == 2 else 0) + 8) + (total * low if keeps_start else 0)
        return _told(shape, total, stages, num_bytes)
    trained = num_roles * lora_parameters(shape, recipe.lora)
    return _told(shape, trained, stages, shape.num_parameters * _low(recipe) + trained * 16)


def _told(shape: Shape, trained: int, stages: dict[str, Any], num_bytes: int) -> dict[str, Any]:
    return {
        "parameters": shape.num_parameters,
        "trained_parameters": trained,
        "stages": stages,
        "bytes_per_device": {"1": num_bytes},
    }


def _low(recipe: MPlusRecipe | RetrofitRecipe | ChatRecipe) -> int:
    return 2 if recipe.dtype == "bfloat16" else 4


def shape_of(base: str) -> Shape:
    """The shape of a bundled model, of a folder's `config.json`, or of one of `KNOWN`. InputError for any other."""
    if base in KNOWN:
        return KNOWN[base]
    file = BUNDLED.get(base, Path(base)) / "config.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        heads, width = result["num_attention_heads"], result["hidden_size"]
        return Shape(
            result["vocab_size"],
            width,
            result["intermediate_size"],
            result["num_hidden_layers"],
            heads,
            result.get("num_key_value_heads") or heads,
            result["max_position_embeddings"],
            result.get("head_dim") or width // heads,
            bool(result.get("tie_word_embeddings", True)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the shape of {base!r} is not known" if base else "this recipe has no model to begin with",
            f"give --start a folder whose config.json is like Llama's, or {' or '.join(KNOWN)}",
        ) from error


def lora_parameters(shape: Shape, lora: LoraConfig) -> int:
    """Parameters of one adapter. Targets that a Llama does not have do not count."""
    C, F, Q, G = shape.width, shape.mlp_width, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sides = {"q_proj": C + Q, "k_proj": C + G, "v_proj": C + G, "o_proj": Q + C}
    sides |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), C + F)
    return shape.num_layers * lora.rank * sum(sides.get(target, 0) for target in lora.targets)


def _mplus_parameters(shape: Shape, recipe: MPlusRecipe) -> int:
    """Trained parameters of M+: two adapters, three projectors per layer, first vectors, and the mark."""
    C, E = shape.width, recipe.method["key_width"]
    return 2 * lora_parameters(shape, recipe.lora) + shape.num_layers * (3 * (2 * E * C + 2 * E * E) + C) + C


def _mplus_stage(shape: Shape, recipe: MPlusRecipe) -> dict[str, float]:
    phases = [_mplus_phase(shape, recipe, phase) for phase in recipe.stages]
    return {name: sum(phase[name] for phase in phases) for name in ("steps", "tokens", "flops")}


def _mplus_phase(shape: Shape, recipe: MPlusRecipe, phase: MPlusPhase) -> dict[str, float]:
    """Upper bound: all chunks and all sentences have the greatest length."""
    chunk, sentence = recipe.method["chunk_tokens"], recipe.sentence_tokens
    writes = (1 - phase.revisit) * (1 - phase.full)
    written = writes * phase.documents * _chunks(recipe, phase) * chunk
    read = recipe.max_questions * sentence
    share = 1.0 if phase.pool_gradient else 1 - phase.whole_pool
    passes = 1 + share * (FROZEN - 1)
    flops = written / chunk * passes * forward_flops(shape, chunk) + FROZEN * (
        recipe.max_questions * forward_flops(shape, sentence) + _prefix_flops(shape, recipe, read)
    )
    return {"steps": phase.num_steps, "tokens": phase.num_steps * (written + read), "flops": phase.num_steps * flops}


def _chunks(recipe: MPlusRecipe, phase: MPlusPhase) -> float:
    """Chunks per document on average. A document of a stream has as many as its tokens fill, or one if read alone."""
    low, high = phase.chunks
    chunks, rest = 0.0, 1.0
    for stream in phase.streams:
        filled = (sum(stream.tokens) / 2) / ((stream.min_chunk_tokens + recipe.method["chunk_tokens"]) / 2)
        together = min(high, max(1.0, filled))
        chunks += stream.share * (phase.whole_pool * together + 1 - phase.whole_pool)
        rest -= stream.share
    return chunks + max(0.0, rest) * (low + high) / 2


def _prefix_flops(shape: Shape, recipe: MPlusRecipe, num_tokens: int) -> float:
    """FLOPs of keys and values of the rows that are read, once per step, and of attention to them, in all layers."""
    rows = recipe.method["write_rows"] * (recipe.method["pool_blocks"] + recipe.method["long_blocks"])
    projection = 2 * shape.width * shape.num_kv_heads * shape.head_dim * rows
    return 2 * shape.num_layers * (projection + 2 * num_tokens * rows * shape.num_heads * shape.head_dim)


def _retrofit_stage(shape: Shape, recipe: RetrofitRecipe) -> dict[str, float]:
    """Upper bound: all references are full, none is shared, and there are books."""
    passes = 3 if recipe.lora is None else FROZEN
    layers = None if recipe.memory_layers is None else len(recipe.memory_layers)
    memory = MemoryShape(recipe.reference_tokens, recipe.used_kept_tokens or 128, QUESTION_TOKENS, layers=layers)
    num_questions, most = recipe.groups * recipe.questions, recipe.passages[1]
    references = recipe.groups * most + recipe.texts * recipe.text_references
    reads = num_questions * most + recipe.texts * recipe.text_references * recipe.text_tokens / QUESTION_TOKENS
    text = num_questions * forward_flops(shape, QUESTION_TOKENS) + recipe.texts * forward_flops(
        shape, recipe.text_tokens
    )
    written = references * write_flops(shape, memory) * (passes if recipe.writes else 1)
    plain = 1 / recipe.plain_every if recipe.plain_every else 0.0
    flops = passes * text + (1 - plain) * (written + passes * reads * read_flops(shape, memory)) + plain * text
    tokens = num_questions * QUESTION_TOKENS + recipe.texts * recipe.text_tokens
    return {"steps": recipe.num_steps, "tokens": recipe.num_steps * tokens, "flops": recipe.num_steps * flops}


def _chat_stage(shape: Shape, recipe: ChatRecipe, stage: ChatStage) -> dict[str, float]:
    """Upper bound: all rows have the greatest length, and no two share a reference.

    DPO reads each pair twice, the second time with the reference model, without a gradient.
    """
    phase = recipe.phase_of(stage)
    rows, most = phase.groups * phase.questions * phase.parts * (2 if stage == "dpo" else 1), phase.passages[1]
    memory = MemoryShape(kept_tokens=recipe.kept_tokens[0] or 128, chunk_tokens=recipe.row_tokens)
    row = forward_flops(shape, recipe.row_tokens) + most * read_flops(shape, memory)
    passes = (3 if recipe.lora is None else FROZEN) + (stage == "dpo")
    flops = rows * (passes * row + most * write_flops(shape, memory))
    tokens = rows * recipe.row_tokens
    return {"steps": phase.num_steps, "tokens": phase.num_steps * tokens, "flops": phase.num_steps * flops}
