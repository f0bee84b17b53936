"""Rows as keys and values, family by family: exact, or refused by name."""

from __future__ import annotations

import pytest
import torch

from remanence.errors import UnsupportedModel
from remanence.lm import hidden_states
from remanence.lm.attention import prepare
from remanence.lm.lora import LoraConfig, add_roles
from tests.lm.families import FAMILIES, NUM_LAYERS, backends, build

REFUSED = {
    "apertus": "norm in front of attention",
    "exaone4": "norm in front of attention",
    "modernbert-decoder": "norm in front of attention",
    "olmo2": "norm in front of attention",
    "olmo3": "norm in front of attention",
    "biogpt": "no rotary positions",
    "gpt2": "no rotary positions",
    "opt": "no rotary positions",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_models_own_keys_and_values_or_refused(family: str):
    model = prepare(build(family, backends(family)[-1]))
    if family in REFUSED:
        with pytest.raises(UnsupportedModel, match=REFUSED[family]):
            hidden_states.prove_rows(model)
    else:
        assert hidden_states.prove_rows(model) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("role", [None, "write", "read"])
def test_the_short_way_equals_the_attention_module_itself(family: str, role: str | None):
    model = prepare(build(family))
    add_roles(model, LoraConfig(rank=4, alpha=8))
    for name, parameter in model.named_parameters():
        if ".b." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    row_BMC, at_M = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)), torch.arange(5) + 7
    for layer in range(NUM_LAYERS):
        attention = hidden_states._attention(model, layer)
        assert hidden_states.is_simple(attention)
        short = hidden_states.rows_to_kv(model, layer, row_BMC, at_M, role)
        normed = hidden_states.norm_of(model, layer)(row_BMC)
        _, key, value = hidden_states._heads(
            attention, normed, hidden_states._rotation(model, layer, normed, at_M), role
        )
        for ours, own in ((short.key_BGMD, key), (short.value_BGMD, value)):
            assert float((ours - own).detach().abs().max()) <= 1e-5 * float(own.detach().abs().max())
