"""What it would take to train a model further, from its base's shape alone: M+, retrofit, SFT and DPO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.lm.folders import BUNDLED
from remanence.lm.lora import LoraConfig
from remanence.train.cost import MemoryShape, forward_flops, read_flops, write_flops
from remanence.train.recipes.chat import ChatRecipe, ChatStage
from remanence.train.recipes.nano_mplus import MPlusPhase, MPlusRecipe
from remanence.train.recipes.retrofit import RetrofitRecipe
from remanence.train.shapes import SHAPES, Shape

KNOWN = {
    "meta-llama/Llama-3.1-8B": SHAPES["llama-3.1-8b"],
    "memory3-0.9b": SHAPES["0.9b"],
    "memory3-2b": SHAPES["2b"],
}
"""Shapes of bases that need not lie on the disk."""
QUESTION_TOKENS = 64
"""Of a row of retrofit that asks a question; its recipe does not say."""
FROZEN = 2
"""Passes that a forward and a backward pass cost where weights get no gradient: their inputs alone do."""


def estimate_further(recipe: MPlusRecipe | RetrofitRecipe | ChatRecipe) -> dict[str, Any]:
    """Parameters of the base, those that are trained, and of every stage its steps, tokens (at most) and FLOPs.

    One process holds all of it, and many are refused. `host_bytes`: long-term memory, beside the device.
    """
    shape = shape_of(recipe.base)
    if isinstance(recipe, MPlusRecipe):
        trained, stages = _latent_parameters(shape, recipe), {recipe.stage: _latent_stage(shape, recipe)}
        C, low = shape.width, _low(recipe)
        held = shape.num_layers * C * 2 * 4 * recipe.method["write_rows"] * recipe.method["pool_blocks"]
        num_bytes = shape.num_parameters * low + trained * 16 + held  # the pool, and the one that a run begins with
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
    """Of a bundled model, a folder's `config.json`, or one of `KNOWN`. InputError for any other."""
    if base in KNOWN:
        return KNOWN[base]
    file = BUNDLED.get(base, Path(base)) / "config.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        heads, width = told["num_attention_heads"], told["hidden_size"]
        return Shape(
            told["vocab_size"],
            width,
            told["intermediate_size"],
            told["num_hidden_layers"],
            heads,
            told.get("num_key_value_heads") or heads,
            told["max_position_embeddings"],
            told.get("head_dim") or width // heads,
            bool(told.get("tie_word_embeddings", True)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the shape of {base!r} is not known" if base else "this recipe has no model to begin with",
            f"give --start a folder whose config.json is like Llama's, or {' or '.join(KNOWN)}",
        ) from error


def lora_parameters(shape: Shape, lora: LoraConfig) -> int:
    """Of one role; maps that a Llama does not have count nothing."""
    C, F, Q, G = shape.width, shape.mlp_width, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sides = {"q_proj": C + Q, "k_proj": C + G, "v_proj": C + G, "o_proj": Q + C}
    sides |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), C + F)
    return shape.num_layers * lora.rank * sum(sides.get(target, 0) for target in lora.targets)


def _latent_parameters(shape: Shape, recipe: MPlusRecipe) -> int:
    """Two roles, three projectors a layer, first vectors and the mark."""
    C, E = shape.width, recipe.method["key_width"]
    return 2 * lora_parameters(shape, recipe.lora) + shape.num_layers * (3 * (2 * E * C + 2 * E * E) + C) + C


def _latent_stage(shape: Shape, recipe: MPlusRecipe) -> dict[str, float]:
    found = [_latent_phase(shape, recipe, phase) for phase in recipe.stages]
    return {name: sum(phase[name] for phase in found) for name in ("steps", "tokens", "flops")}


def _latent_phase(shape: Shape, recipe: MPlusRecipe, phase: MPlusPhase) -> dict[str, float]:
    """At most: every chunk that is written and every sentence that is read is as long as it may be."""
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
    """Of a document on average; of one of a stream as many as its tokens fill, one where it is read alone."""
    low, high = phase.chunks
    found, rest = 0.0, 1.0
    for stream in phase.streams:
        filled = (sum(stream.tokens) / 2) / ((stream.min_chunk_tokens + recipe.method["chunk_tokens"]) / 2)
        together = min(high, max(1.0, filled))
        found += stream.share * (phase.whole_pool * together + 1 - phase.whole_pool)
        rest -= stream.share
    return found + max(0.0, rest) * (low + high) / 2


def _prefix_flops(shape: Shape, recipe: MPlusRecipe, num_tokens: int) -> float:
    """Keys and values of the rows that are read, once a step, and attention to them, in every layer."""
    rows = recipe.method["write_rows"] * (recipe.method["pool_blocks"] + recipe.method["long_blocks"])
    made = 2 * shape.width * shape.num_kv_heads * shape.head_dim * rows
    return 2 * shape.num_layers * (made + 2 * num_tokens * rows * shape.num_heads * shape.head_dim)


def _retrofit_stage(shape: Shape, recipe: RetrofitRecipe) -> dict[str, float]:
    """At most: every reference is full, none is shared, and books are there."""
    passes = 3 if recipe.lora is None else FROZEN
    layers = None if recipe.memory_layers is None else len(recipe.memory_layers)
    memory = MemoryShape(recipe.reference_tokens, recipe.used_kept_tokens or 128, QUESTION_TOKENS, layers=layers)
    asked, most = recipe.groups * recipe.questions, recipe.passages[1]
    references = recipe.groups * most + recipe.texts * recipe.text_references
    reads = asked * most + recipe.texts * recipe.text_references * recipe.text_tokens / QUESTION_TOKENS
    text = asked * forward_flops(shape, QUESTION_TOKENS) + recipe.texts * forward_flops(shape, recipe.text_tokens)
    written = references * write_flops(shape, memory) * (passes if recipe.writes else 1)
    plain = 1 / recipe.plain_every if recipe.plain_every else 0.0
    flops = passes * text + (1 - plain) * (written + passes * reads * read_flops(shape, memory)) + plain * text
    tokens = asked * QUESTION_TOKENS + recipe.texts * recipe.text_tokens
    return {"steps": recipe.num_steps, "tokens": recipe.num_steps * tokens, "flops": recipe.num_steps * flops}


def _chat_stage(shape: Shape, recipe: ChatRecipe, stage: ChatStage) -> dict[str, float]:
    """At most: every row is as long as it may be, and no two share a reference. DPO reads each pair twice: the
    reference without a gradient."""
    phase = recipe.phase_of(stage)
    rows, most = phase.groups * phase.questions * phase.parts * (2 if stage == "dpo" else 1), phase.passages[1]
    memory = MemoryShape(kept_tokens=recipe.kept_tokens[0] or 128, chunk_tokens=recipe.row_tokens)
    row = forward_flops(shape, recipe.row_tokens) + most * read_flops(shape, memory)
    passes = (3 if recipe.lora is None else FROZEN) + (stage == "dpo")
    flops = rows * (passes * row + most * write_flops(shape, memory))
    tokens = rows * recipe.row_tokens
    return {"steps": phase.num_steps, "tokens": phase.num_steps * tokens, "flops": phase.num_steps * flops}
