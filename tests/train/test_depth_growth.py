"""A deeper model that begins as the one it grew from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from remanence.errors import InputError
from remanence.train.core.model import build_model
from remanence.train.core.shapes import Shape
from remanence.train.init.depth_growth import grown, sources
from remanence.train.memory3.nano import load_model

SHAPE = Shape(vocab_size=64, width=32, mlp_width=64, num_layers=3, num_heads=2, num_kv_heads=1, max_positions=64)
IDS = torch.tensor([[3, 9, 27, 41, 5, 60]])


def test_layers_are_spread_evenly() -> None:
    assert sources(6, 8) == [0, 1, 1, 2, 3, 4, 4, 5]
    assert sources(2, 4) == [0, 0, 1, 1]
    assert sources(4, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("num_layers", [3, 4, 5, 7])
def test_a_grown_model_computes_the_same(num_layers: int, tmp_path: Path) -> None:
    small = build_model(SHAPE, 0)
    state = {name: tensor for name, tensor in small.state_dict().items() if name != "lm_head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    large = build_model(replace(SHAPE, num_layers=num_layers), 1)
    load_model(large, tmp_path)
    assert torch.equal(small(IDS).logits, large(IDS).logits)


def test_new_layers_learn_from_the_first_step() -> None:
    small = build_model(SHAPE, 0)
    large = build_model(replace(SHAPE, num_layers=5), 1)
    large.load_state_dict(grown(dict(small.state_dict()), 5))
    large(IDS, labels=IDS).loss.backward()
    silent = [layer.mlp.down_proj.weight for layer in large.model.layers if not layer.mlp.down_proj.weight.any()]
    assert len(silent) == 2
    assert all(weight.grad is not None and weight.grad.any() for weight in silent)


def test_a_model_is_not_made_shallower(tmp_path: Path) -> None:
    state = dict(build_model(SHAPE, 0).state_dict())
    state.pop("lm_head.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="it has 3 layers, more than 2"):
        load_model(build_model(replace(SHAPE, num_layers=2), 0), tmp_path)
