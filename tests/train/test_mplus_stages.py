"""M+'s three stages as runs of their own: each goes on from the one before; and the paper's sizes, counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

import remanence as rm
from remanence.errors import InputError
from remanence.lm.lora import adapter, add_roles
from remanence.methods.mplus.method import MPlus, MPlusConfig
from remanence.train.core import checkpoint
from remanence.train.core.stages import TrainArgs, train_recipe
from remanence.train.cost.estimate import estimate
from remanence.train.examples.corpora import Corpora
from remanence.train.mplus import steps
from remanence.train.mplus.run import trained_parameters
from remanence.train.mplus.stages import TRAINER, begin_after, start_mplus_run
from remanence.train.mplus.steps import step_loss
from remanence.train.mplus.trainable_prefix import TrainablePrefix
from remanence.train.recipes import RECIPES, recipe_of
from remanence.train.recipes.nano_mplus import MPlusRecipe, Stream, nano_mplus
from tests.train.tiny_runs import PARAGRAPHS, smaller_latent

LLAMA = "llama-3.1-8b"


def tiny(name: str, **fields: Any) -> MPlusRecipe:
    made = smaller_latent(recipe_of(name))
    return replace(made, projector_documents=0 if made.after else 8, num_steps=3, **fields)


def wanted(name: str, out: Path, **others: Any) -> TrainArgs:
    return TrainArgs(name, **{"stage": "all", "out": out, **others})


def test_each_stage_goes_on_from_the_one_before(tmp_path: Path):
    with pytest.raises(InputError, match=r"stage2 begins with the weights of stage1, which .* does not hold"):
        train_recipe(TRAINER, tiny("mplus/stage2"), wanted("mplus/stage2", tmp_path))
    for name in ("mplus/stage1", "mplus/stage2", "mplus/stage3"):
        train_recipe(TRAINER, tiny(name), wanted(name, tmp_path))
    told = json.loads((tmp_path / "run.json").read_text())
    assert [entry["stage"] for entry in told] == ["stage1", "stage2", "stage3"]
    before = checkpoint.load(tmp_path / "stage2")
    run = start_mplus_run(tiny("mplus/stage3"), "tiny", None, tmp_path)
    begin_after(run, "stage2")
    assert run.step == 0
    assert all(torch.equal(weight, run.optimizer.masters[name]) for name, weight in before.weights.items())
    assert torch.equal(run.pool.row_LNC, before.tensors["pool/row_LNC"])
    assert run.pool.clock == before.progress["values"]["pool"]["clock"] > 0
    last = checkpoint.load(tmp_path / "stage3")
    assert any(not torch.equal(weight, last.weights[name]) for name, weight in before.weights.items())
    assert rm.load(tmp_path / "mplus-stage3").settings["adapter"] == {"base": "tiny"}


def test_a_stage_with_a_smaller_pool_keeps_the_newest_rows(tmp_path: Path):
    first = tiny("mplus/stage1")
    train_recipe(TRAINER, first, wanted("mplus/stage1", tmp_path))
    pool_LNC = checkpoint.load(tmp_path / "stage1").tensors["pool/row_LNC"]
    method = {**first.method, "pool_blocks": 3}
    run = start_mplus_run(tiny("mplus/stage2", method=method), "tiny", None, tmp_path)
    begin_after(run, "stage1")
    assert torch.equal(run.pool.row_LNC, pool_LNC[:, -24:])
    assert run.pool.born_LN.shape == (2, 24)
    larger = start_mplus_run(tiny("mplus/stage2", method={**method, "pool_blocks": 5}), "tiny", None, tmp_path)
    with pytest.raises(InputError, match="has 32 rows, stage2 needs 40"):
        begin_after(larger, "stage1")


@pytest.mark.parametrize("whole", [0.0, 1.0])
def test_long_documents_are_written_chunk_by_chunk_and_as_the_authors_do_without_gradient(tmp_path: Path, whole: float):
    """Ten chunks do not fit the pool; a gradient goes through the writing only where one is read alone."""
    phase = replace(
        recipe_of("mplus/stage1", LLAMA).stages[0],
        documents=2,
        chunks=(10, 10),
        full=0.0,
        repeat=0.0,
        whole_pool=whole,
        streams=(Stream(1.0, (300, 320), 12),),
    )
    recipe = tiny("mplus/stage1", stages=(phase,), sentence_tokens=64, past_writes=0, look_layers=())
    run = start_mplus_run(replace(recipe, method={**recipe.method, "long_blocks": 0}), "tiny", None, tmp_path)
    run.corpora = Corpora(paragraphs=PARAGRAPHS)
    for step in range(2):  # B of every adapter is zero at first
        run.optimizer.drop_gradients()
        step_loss(run, phase, Random(f"x {step}"))[0].backward()
        run.optimizer.step(1.0) if step == 0 else None
    write, read = (adapter(run.lm.model, role).values() for role in ("write", "read"))
    assert any(p.grad is not None and p.grad.any() for p in read)
    assert any(p.grad is not None and bool(p.grad.any()) for p in write) is (whole == 0)
    assert run.pool.clock >= 2 * 8 * (1 if whole == 0 else 4)
    assert run.past == []


@pytest.mark.parametrize("long_blocks", [0, 2])
def test_a_stage_without_slots_reads_no_long_term_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_blocks: int
):
    """Its pool drops rows all the same, and a revisit finds them there."""
    made: list[TrainablePrefix] = []

    class AttentionRecord(TrainablePrefix):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append(self)

    monkeypatch.setattr(steps, "TrainablePrefix", AttentionRecord)
    recipe = tiny("mplus/stage1", past_writes=0, look_layers=())
    run = start_mplus_run(replace(recipe, method={**recipe.method, "long_blocks": long_blocks}), "tiny", None, tmp_path)
    phase = replace(recipe.stages[0], documents=8, full=0.0, long=0.0, revisit=1.0)
    for step in range(2):
        loss, _ = step_loss(run, phase, Random(f"y {step}"))
        assert torch.isfinite(loss)
    found = made[-1]
    assert found.writes is not None
    assert found.score.keys() == {0, 1}, "writes are scored, which teaches the retriever"
    assert all((rows.shape[1] > 0) is (long_blocks > 0) for rows in found.chosen.values())


def test_the_whole_of_nano_mplus_is_its_three_stages():
    stages = [recipe_of(f"mplus/stage{number}") for number in (1, 2, 3)]
    assert tuple(phase for recipe in stages for phase in recipe.stages) == nano_mplus().stages
    assert sum(recipe.num_steps for recipe in stages) == nano_mplus().num_steps
    assert [recipe.after for recipe in stages] == [None, "stage1", "stage2"]


def test_the_papers_numbers():
    one, two, three = (recipe_of(f"mplus/stage{number}", LLAMA) for number in (1, 2, 3))
    configs = [MPlusConfig(**recipe.method) for recipe in (one, two, three)]
    assert [config.pool_rows for config in configs] == [12_800, 12_800, 10_240]
    assert configs[2].long_slots == 2560
    assert configs[2].pool_rows + configs[2].long_slots == 12_800
    assert three.kept_rows == 153_600
    assert one.num_steps == 1_200_000
    assert [recipe.lr for recipe in (one, two, three)] == pytest.approx([3.68e-4, 3.68e-5, 3.68e-5])
    assert (one.lora.rank, one.lora.alpha, one.lora.dropout) == (16, 32, 0.1)
    assert [stream.share for stream in two.stages[0].streams] == [0.2] * 5
    found = estimate(three)
    assert found["parameters"] == 8_030_261_248
    assert found["trained_parameters"] - 2 * 37_748_736 - 3 * 71_303_168 == 33 * 4096
    assert found["host_bytes"] == 32 * 153_600 * (4096 + 256) * 2
    assert 5e3 > estimate(one)["hours_on_one"]["A100"] > 1e3, "the authors: eight for four weeks, 5,376"


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("mplus/")])
def test_trained_parameters_are_those_of_a_run(name: str):
    recipe = recipe_of(name)
    lm = rm.load(recipe.base)
    add_roles(lm.model, recipe.lora)
    trained = trained_parameters(lm, MPlus(MPlusConfig(**recipe.method)))
    assert estimate(recipe)["trained_parameters"] == sum(p.numel() for p in trained.values())
