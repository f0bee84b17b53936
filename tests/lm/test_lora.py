"""LoRA with roles: the base bit for bit without one, both learn, and PEFT's own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from remanence.errors import InputError
from remanence.lm import attention, lora
from remanence.lm.tiny import tiny_model

CONFIG = lora.LoraConfig(rank=4, alpha=8.0, dropout=0.0)
IDS = torch.arange(3, 12)[None]


def adapted(random: bool = True):
    model = attention.prepare(tiny_model())
    lora.add_roles(model, CONFIG)
    if random:
        torch.manual_seed(3)
        for parameter in lora.role_parameters(model):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_without_a_role_the_base_runs_bit_for_bit():
    base = attention.prepare(tiny_model())
    assert torch.equal(adapted()(IDS).logits, base(IDS).logits)


def test_a_role_is_the_base_with_merged_weights():
    model, base = adapted(), tiny_model()
    found = dict(model.named_modules())
    for name, module in base.named_modules():
        role_linear = found.get(name)
        if isinstance(role_linear, lora.RoleLinear):
            module.weight.data += CONFIG.scale * role_linear.b["read"] @ role_linear.a["read"]
    assert torch.allclose(model(IDS, role="read").logits, base(IDS).logits, atol=1e-5)
    assert not torch.allclose(model(IDS, role="write").logits, base(IDS).logits, atol=1e-3)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_roles_in_one_loss_get_their_own_gradients(checkpointing: bool):
    """Each role's gradient is what it is when the other pass is left out; also where layers run again."""

    def gradients(roles):
        model = adapted().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        sum(model(IDS, role=role, use_cache=False).logits.square().mean() for role in roles).backward()
        return {role: [p.grad for p in lora.adapter(model, role).values()] for role in lora.ROLES}

    both, one, other = gradients(("write", "read")), gradients(("write",)), gradients(("read",))
    for together, alone in ((both["write"], one["write"]), (both["read"], other["read"])):
        assert all(
            float((a - b).abs().max()) <= 1e-5 * float(b.abs().max()) for a, b in zip(together, alone, strict=True)
        )
    assert all(p is None or not p.any() for p in one["read"])


def test_saved_as_peft_has_it_and_loaded_again(tmp_path: Path):
    model = adapted()
    for role in lora.ROLES:
        lora.save_adapter(model, role, tmp_path / role, CONFIG, "tiny")
    again = adapted(random=False)
    for role in lora.ROLES:
        assert lora.read_config(tmp_path / role) == CONFIG
        lora.load_adapter(again, role, tmp_path / role)
    assert torch.equal(again(IDS, role="read").logits, model(IDS, role="read").logits)
    described = json.loads((tmp_path / "read" / "adapter_config.json").read_text())
    assert described["peft_type"] == "LORA"
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in lora.adapter(model, "read")


def test_an_adapter_of_another_shape_is_refused_before_anything_is_copied(tmp_path: Path):
    model = adapted()
    lora.save_adapter(model, "read", tmp_path, CONFIG, "tiny")
    other = attention.prepare(tiny_model())
    lora.add_roles(other, lora.LoraConfig(rank=2, alpha=4.0))
    before = [p.clone() for p in lora.role_parameters(other)]
    with pytest.raises(InputError, match="this model needs"):
        lora.load_adapter(other, "read", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, lora.role_parameters(other), strict=True))


def test_roles_are_added_once():
    with pytest.raises(InputError, match="already"):
        lora.add_roles(adapted(), CONFIG)
