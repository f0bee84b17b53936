"""What a dry run says is what a run takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import remanence as rm
from remanence.lm.lora import add_roles, role_parameters
from remanence.train.core import loop
from remanence.train.core.shapes import SHAPES, MemoryShape
from remanence.train.cost.estimate import USE, estimate, state_bytes
from remanence.train.cost.flops import PEAK_FLOPS, training_flops
from remanence.train.recipes import recipe_of
from remanence.train.recipes.nano import nano
from remanence.train.recipes.nano_text import nano_text
from remanence.train.recipes.retrofit import retrofit
from tests.train.tiny_runs import begin, smaller


@pytest.mark.parametrize(("dtype", "rule"), [("bfloat16", "muon"), ("float32", "adamw")])
def test_bytes_are_those_of_weights_gradients_masters_and_optimizer(tmp_path: Path, dtype: str, rule: str) -> None:
    recipe = replace(smaller(nano()), dtype=dtype, matrix_rule=rule)  # type: ignore[arg-type]
    run, task = begin(tmp_path, recipe, "warmup")
    loop.train(run, task, 1)
    weights = list(run.optimizer.model.values())
    masters = [master for name, master in run.optimizer.masters.items() if master is not run.optimizer.model[name]]
    moments = [tensor for tensor in run.optimizer.state().values() if tensor.ndim]
    held = sum(t.nbytes for t in [*weights, *weights, *masters, *moments])  # a gradient is as large as its weight
    assert state_bytes(recipe, 1) == held
    assert state_bytes(recipe, 2) < held


def test_tokens_and_flops_are_counted_stage_by_stage() -> None:
    recipe = nano_text()
    found, (phase,) = estimate(recipe), recipe.warmup
    warm, read = found["stages"]["warmup"], found["stages"]["continual"]
    assert warm["tokens"] == phase.num_steps * phase.rows * phase.tokens
    assert warm["flops"] == pytest.approx(phase.num_steps * phase.rows * training_flops(recipe.shape, phase.tokens))
    control, detached = found["stages"]["control"]["flops"], found["stages"]["detached"]["flops"]
    assert control < detached < read["flops"]
    assert found["tokens"] == sum(stage["tokens"] for stage in found["stages"].values())
    assert found["hours_on_one"]["H100"] == pytest.approx(found["flops"] / (USE * PEAK_FLOPS["H100"]) / 3600)
    two = estimate(replace(recipe, shape=SHAPES["2b"]))
    assert two["parameters"] == SHAPES["2b"].num_parameters


@pytest.mark.parametrize(("size", "warm", "read"), [("2b", 3.1e12, 120e9), ("0.9b", 60e9, 22e9)])
def test_the_papers_recipes_take_the_papers_tokens(size: str, warm: float, read: float) -> None:
    recipes = {stage: recipe_of(f"memory3/{stage}", size) for stage in ("warmup", "continual")}
    for stage, tokens in (("warmup", warm), ("continual", read)):
        found = estimate(recipes[stage])
        assert found["tokens"] == pytest.approx(tokens, rel=1e-4)
        assert found["stages"][stage]["tokens"] == recipes[stage].num_steps * 2048 * 2048
        assert found["parameters"] == SHAPES[size].num_parameters
    per_token = [estimate(recipe)["flops"] / estimate(recipe)["tokens"] for recipe in recipes.values()]
    memory = MemoryShape()
    assert per_token[0] == pytest.approx(training_flops(SHAPES[size], 2048) / 2048)
    assert per_token[1] == pytest.approx(training_flops(SHAPES[size], 2048, memory) / 2048)


def test_the_2b_recipe_is_the_papers_model() -> None:
    for stage, rate in (("warmup", 8e-4), ("continual", 5e-5)):
        recipe = recipe_of(f"memory3/{stage}", "2b")
        shape = recipe.shape
        assert shape.num_layers * shape.layer_parameters == 2_433_024_000
        assert (shape.num_layers, shape.width, shape.mlp_width, shape.vocab_size) == (44, 3200, 3200, 60_416)
        assert (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.tied) == (40, 8, 80, False)
        assert (recipe.memory.num_layers(shape), recipe.sequence_tokens, recipe.lr) == (22, 2048, rate)
        assert recipe.step_tokens == 2**22
        assert (recipe.weight_decay, recipe.betas, recipe.clip_norm) == (0.1, (0.9, 0.95), 1.0)
    assert (recipe.reads, recipe.writes, recipe.memory.kept_tokens, recipe.memory.memories) == (True, True, 8, 5)


def test_what_is_trained_further_is_counted_from_the_shape_of_its_base() -> None:
    recipe = replace(retrofit(), base="nano")
    lm = rm.load("nano")
    found, whole = estimate(recipe), estimate(replace(recipe, lora=None))
    assert found["parameters"] == whole["trained_parameters"] == sum(p.numel() for p in lm.model.parameters())
    assert recipe.lora is not None
    add_roles(lm.model, recipe.lora)
    trained = sum(p.numel() for p in role_parameters(lm.model))
    assert found["trained_parameters"] == trained
    assert found["bytes_per_device"] == {"1": found["parameters"] * 2 + trained * 16}
    assert estimate(replace(recipe, roles=("read",)))["trained_parameters"] == trained // 2
    reads = estimate(replace(recipe, roles=("read",)))["flops"]
    assert reads < found["flops"] < whole["flops"], "no gradient through the writing; none for the base; all"


def test_sft_and_dpo_are_estimated_and_only_the_second_reads_twice() -> None:
    sft, dpo = (estimate(recipe_of(f"memory3/{stage}", "2b")) for stage in ("sft", "dpo"))
    assert sft["parameters"] == sft["trained_parameters"] == SHAPES["2b"].num_parameters
    assert sft["stages"]["sft"]["tokens"] == 7541 * 512 * 2048
    assert dpo["stages"]["dpo"]["tokens"] == 547 * 2 * 128 * 2048
    per_token = [found["flops"] / found["tokens"] for found in (sft, dpo)]
    assert 1.2 < per_token[1] / per_token[0] < 4 / 3
    assert dpo["bytes_per_device"]["1"] > sft["bytes_per_device"]["1"], "the reference is kept"
