"""A model with normalised queries and keys trains, reads memory exactly, and loads from the folder that is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import remanence.lm.lm as lm_module
from remanence.errors import InputError
from remanence.lm import attention, proof
from remanence.lm.load import load
from remanence.train.core import loop
from remanence.train.core.model import build_model
from remanence.train.export.model import export
from remanence.train.memory3.nano import load_model
from remanence.train.recipes.nano import nano
from tests.train.tiny_runs import SHAPE, begin, losses, smaller

NORMED = replace(SHAPE, qk_norm=True)


def test_the_shape_knows_its_parameters() -> None:
    model = build_model(NORMED, 0)
    assert sum(p.numel() for p in model.parameters()) == NORMED.num_parameters
    assert NORMED.num_parameters - SHAPE.num_parameters == 2 * NORMED.head_dim * NORMED.num_layers


def test_memory_is_exact() -> None:
    model = build_model(NORMED, 0).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    measured = proof.prove(attention.prepare(model))
    assert measured.effect > 0.1
    assert measured.error < 1e-4


def test_it_trains_with_and_without_memory_and_what_is_written_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)  # random tiny weights prove nothing
    recipe = replace(smaller(nano()), shape=NORMED, matrix_lr=2e-3)
    for stage in ("warmup", "continual"):
        run, task = begin(tmp_path, recipe, stage)
        found = losses(run, task, 12)
        assert min(found[-3:]) < found[0]
    weights = run.optimizer.masters
    gain = weights["model.layers.0.self_attn.q_norm.weight"]
    assert not torch.equal(gain, torch.full_like(gain, 2.0)), "the gains are trained too"
    tokenizer = run.encoder.tokenizer  # type: ignore[attr-defined]
    export(tmp_path / "export", NORMED, weights, tokenizer, None)
    lm = load(tmp_path / "export")
    assert lm.model.config.model_type == "qwen3"
    again = build_model(NORMED, 1)
    load_model(again, tmp_path / "export")
    ids_BT = torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(again(ids_BT).logits, lm.forward(ids_BT), atol=1e-5)
    with pytest.raises(InputError, match=r"[qk]_norm\.weight is not in both"):
        load_model(build_model(SHAPE, 0), tmp_path / "export")


def test_a_checkpoint_from_before_the_field_goes_on(tmp_path: Path) -> None:
    recipe = smaller(nano())
    loop.train(*begin(tmp_path, recipe, "warmup"), 1)
    progress = tmp_path / "warmup" / "progress.json"
    told = json.loads(progress.read_text())
    del told["recipe"]["shape.qk_norm"], told["spikes"]
    progress.write_text(json.dumps(told))
    run, task = begin(tmp_path, recipe, "warmup")
    loop.resume(run, task)
    assert (run.step, run.spikes) == (1, 0)
    normed, task = begin(tmp_path, replace(recipe, shape=NORMED), "warmup")
    with pytest.raises(InputError, match="the weights belong to another model"):
        loop.resume(normed, task)
