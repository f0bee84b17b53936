"""PEFT reads the adapters that are exported here, and computes what we compute with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from remanence.lm import folders, lora
from remanence.lm.load import load
from remanence.lm.tiny import tiny_model

# PEFT asks transformers by a name that transformers is about to rename
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
BUNDLED = [("nano-chat", "read"), ("nano-mplus", "read"), ("nano-mplus", "write")]
IDS_BT = torch.arange(100, 132)[None]


@torch.no_grad()
def with_peft(base: torch.nn.Module, folder: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    return model(IDS_BT, use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize(("name", "role"), BUNDLED)
def test_peft_loads_the_bundled_adapters(name: str, role: str) -> None:
    base = load("nano", device="cpu")
    plain = base.model(IDS_BT, use_cache=False).logits
    ours = load(name, device="cpu").forward(IDS_BT, role=role)
    theirs = with_peft(base.model, folders.BUNDLED[name] / role)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert (ours - plain).abs().max() > 0.1, "the adapter does something"


@torch.no_grad()
@pytest.mark.parametrize("role", lora.ROLES)
def test_peft_loads_what_training_exports(tmp_path: Path, role: str) -> None:
    model, config = tiny_model(), lora.LoraConfig(rank=4, alpha=12.0, targets=("q_proj", "down_proj"))
    lora.add_roles(model, config)
    for parameter in lora.adapter(model, role).values():
        torch.nn.init.normal_(parameter, std=0.2)
    lora.save_adapter(model, role, tmp_path, config, "tiny")
    ours = model_logits(model, role)
    theirs = with_peft(tiny_model(), tmp_path)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert (ours - tiny_model()(IDS_BT, use_cache=False).logits).abs().max() > 0.1


def model_logits(model: torch.nn.Module, role: str) -> torch.Tensor:
    """One role of a model that was never given to `LM`: each linear map is set by hand."""
    for module in model.modules():
        if isinstance(module, lora.RoleLinear):
            module.role = role
    return model(IDS_BT, use_cache=False, role=role).logits


@torch.no_grad()
def test_what_peft_saves_is_read_here(tmp_path: Path) -> None:
    config = lora.LoraConfig(rank=4, targets=("q_proj", "v_proj"))
    model = tiny_model()
    lora.add_roles(model, config, ("read",))
    for parameter in lora.adapter(model, "read").values():
        torch.nn.init.normal_(parameter, std=0.2)
    lora.save_adapter(model, "read", tmp_path / "ours", config, "tiny")
    theirs = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "ours"))
    theirs.save_pretrained(str(tmp_path / "read"), save_embedding_layers=False)
    (tmp_path / folders.SETTINGS).write_text(json.dumps({"adapter": {"base": "tiny", "roles": ["read"]}}))
    lm = load(tmp_path, device="cpu")
    torch.testing.assert_close(lm.forward(IDS_BT), theirs.eval()(IDS_BT, use_cache=False).logits, rtol=0, atol=1e-5)
