"""The share of attention on memory is what one row's attention says, and the log holds it beside speed and spikes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import remanence.lm.lm as lm_module
from remanence.lm import attention
from remanence.methods.memory3.method import Memory3
from remanence.train.core import loop
from remanence.train.core.attention_shares import memory_shares
from remanence.train.core.losses import targets
from remanence.train.memory3 import continual
from remanence.train.recipes.nano import NanoPhase, nano
from remanence.train.recipes.nano_mplus import nano_mplus
from tests.train.tiny_runs import begin, begin_latent, smaller, smaller_latent


@pytest.fixture(autouse=True)
def _unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)  # random tiny weights prove nothing


@torch.no_grad()
def test_it_is_the_mass_of_one_rows_attention(tmp_path: Path) -> None:
    run, _ = begin(tmp_path, smaller(nano()), "warmup")
    lm = continual.reading_model(run)
    batch = continual.memory_batch(run, NanoPhase(0, 1, 64, (2, 2), 1), "x")
    config, watch, T = continual.paper_config(lm, 4), continual.capture_memory_layers(lm), batch.ids_BT.shape[1]
    index_N = torch.tensor([T - 1])
    continual.read_memories(lm, config, batch, index_N, watch=watch)
    num_lead = len(Memory3(config).prefix_ids(lm))
    found = memory_shares(watch.seen, T, num_lead, index_N)
    assert found.keys() == {f"share_memory_layer_{layer}" for layer in config.memory_layers}
    mass_S = attention.attention_mass(watch.seen[0], T - 1)
    assert len(mass_S) > T + num_lead
    assert found["share_memory_layer_0"] == pytest.approx(float(mass_S[num_lead:-T].sum()), abs=1e-4)
    assert 0 < found["share_memory_layer_0"] < 1
    assert memory_shares(watch.seen, T, num_lead, targets(torch.zeros_like(batch.kind_BT), 1)) == {}


def test_evaluations_of_every_stage_with_memory_show_it(tmp_path: Path) -> None:
    recipe = smaller(nano())
    loop.train(*begin(tmp_path, recipe, "warmup"), 1)
    _, task = begin(tmp_path, recipe, "continual")
    assert 0 < task.evaluate(1)["share_memory_layer_0"] < 1
    _, task = begin_latent(tmp_path / "latent", smaller_latent(nano_mplus()))
    found = task.evaluate(1)
    assert 0 < found["share_memory_layer_1"] < 1


def test_speed_is_counted_and_held_against_the_peak(tmp_path: Path) -> None:
    recipe = smaller(nano())
    run, task = begin(tmp_path, recipe, "warmup")
    run.log_every, run.peak_flops = 3, 1e10
    loop.train(run, task, 3)
    run, task = begin(tmp_path, replace(recipe, plain_every=2), "continual")
    run.log_every, run.step = 2, 0
    loop.train(run, task, 2)
    first, second = (
        told for told in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()) if "spikes" in told
    )
    assert first["mfu"] == pytest.approx(first["tflops_per_second"] * 100, abs=0.006)
    assert first["tflops_per_second"] > 0
    assert second["tflops_per_second"] > 0
    assert "mfu" not in second
