"""Keys moved to other positions equal the keys of the same text computed there, or the family is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from remanence.errors import UnsupportedModel
from remanence.lm import attention
from remanence.lm.capture import capture
from remanence.lm.rotate import move_keys
from tests.lm.families import FAMILIES, NUM_LAYERS, backends, build

EXACT = 1e-5
"""float32: largest difference of keys, as a part of the largest key; angles are computed in float32."""

LAYERS = tuple(range(NUM_LAYERS))
REFUSED = {
    "biogpt": "learned positions",
    "gpt2": "learned positions",
    "opt": "learned positions",
    "deepseek_v2": "only the last part of a key is rotated",
    "deepseek_v3": "only the last part of a key is rotated",
    "hunyuan_v1_dense": "keys are scaled after they are rotated",
    "llama4_text": "rotation by complex numbers",
}


def keys(model: PreTrainedModel, start: int, num_tokens: int = 20) -> Tensor:
    ids_BT = torch.arange(30, 30 + num_tokens)[None]
    positions_BT = start + torch.arange(num_tokens)[None]
    with torch.no_grad():
        seen = capture(model, ids_BT, frozenset(LAYERS), positions_BT=positions_BT)
    return torch.stack([seen[layer].key_BGSD[0] for layer in LAYERS])


def error(model: PreTrainedModel, start: int, num_positions: int) -> float:
    truth = keys(model, start + num_positions)
    moved = move_keys(model, keys(model, start), LAYERS, num_positions)
    return float((moved - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_moved_keys_equal_keys_computed_there(name: str) -> None:
    model = attention.prepare(build(name, backends(name)[-1]))
    assert error(model, start=0, num_positions=101) <= EXACT
    assert error(model, start=9, num_positions=1) <= EXACT


@pytest.mark.parametrize("name", [name for name in FAMILIES if name in REFUSED])
def test_a_family_whose_keys_cannot_be_moved_is_refused_by_name(name: str) -> None:
    model = attention.prepare(build(name, backends(name)[-1]))
    with pytest.raises(UnsupportedModel, match=f"'{name}'.*cannot be moved.*paper"):
        move_keys(model, keys(model, 0), LAYERS, 5)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_scaled_rotations_move_too(scaling: dict[str, Any]) -> None:
    model = attention.prepare(build("llama", rope_scaling={"rope_theta": 10000.0, **scaling}))
    assert error(model, start=3, num_positions=77) <= EXACT


def test_layers_without_rotation_keep_their_keys() -> None:
    model = attention.prepare(build("smollm3"))  # its second layer has no RoPE
    here = keys(model, 0)
    moved = move_keys(model, here, LAYERS, 5)
    assert torch.equal(moved[1], here[1])
    assert not torch.equal(moved[0], here[0])


def test_moving_by_nothing_changes_nothing_and_twice_is_the_sum() -> None:
    model = attention.prepare(build("qwen3"))
    here = keys(model, 0)
    assert move_keys(model, here, LAYERS, 0) is here
    twice = move_keys(model, move_keys(model, here, LAYERS, 30), LAYERS, 12)
    torch.testing.assert_close(twice, move_keys(model, here, LAYERS, 42), rtol=0, atol=1e-5)


def test_a_subset_of_layers_and_bfloat16() -> None:
    model = attention.prepare(build("gemma3_text", dtype=torch.bfloat16))
    here, truth = keys(model, 0), keys(model, 40)
    moved = move_keys(model, here[[0, 2]], (0, 2), 40)
    assert moved.dtype == torch.bfloat16
    assert float((moved - truth[[0, 2]]).abs().max() / truth.abs().max()) <= 0.05


def test_gradients_flow_through_a_move() -> None:
    model = attention.prepare(build("llama"))
    here = keys(model, 0).requires_grad_()
    move_keys(model, here, LAYERS, 9).square().sum().backward()
    torch.testing.assert_close(here.grad, 2 * here.detach(), rtol=1e-4, atol=1e-5)  # a rotation keeps lengths
