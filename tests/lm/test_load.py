"""Loading by name: fingerprints of the bundled models as they were stored, adapters that leave their base alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from remanence.errors import InputError
from remanence.lm import folders
from remanence.lm.load import load
from remanence.lm.lora import LoraConfig, add_roles, save_adapter
from remanence.lm.tiny import tiny_model

NANO = "731d0632fc89d2a4810b281403f469d7416f92b9ad3c3e126de31b5e60bc3271"
STORED = {
    "nano": NANO,
    "nano-chat": NANO,  # its adapter only reads: what nano has written is its own
    "nano-mplus": "da21fd166167c8cdfda7bc8e3f60e5f3dc710e0f8fbee64f37762a5c69a9a480",
}
"""Float32 on a CPU, computed by the first release: banks that were written with it hold these."""


@pytest.mark.parametrize("name", STORED)
def test_fingerprints_are_those_of_banks_that_exist(name: str) -> None:
    lm = load(name, device="cpu")
    assert lm.fingerprint == STORED[name]
    assert lm.embedder is not None
    assert lm.embedder.name == f"{name}-hidden0-{STORED[name][:16]}"


def test_a_model_comes_with_what_its_folder_says() -> None:
    chat, mplus = load("nano-chat", device="cpu"), load("nano-mplus", device="cpu")
    assert (chat.reads_as, chat.writes_as, chat.latent) == ("read", None, None)
    assert (mplus.reads_as, mplus.writes_as) == (None, None)
    assert mplus.latent is not None
    assert {"adapter", "mplus"} == set(mplus.settings)
    ids_BT = torch.arange(100, 120)[None]
    with torch.no_grad():
        plain = load("nano", device="cpu").forward(ids_BT)
        assert torch.equal(mplus.forward(ids_BT), plain), "without a role an adapter changes nothing"
        assert not torch.allclose(chat.forward(ids_BT), plain, atol=1e-3)


def adapter_folder(path: Path, roles: list[str]) -> Path:
    """An adapter of tiny with those roles, its B no longer 0."""
    model, config = tiny_model(), LoraConfig(rank=2)
    add_roles(model, config, roles)
    for name, parameter in model.named_parameters():
        if ".b." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for role in roles:
        save_adapter(model, role, path / role, config, "tiny")
    (path / folders.SETTINGS).write_text(json.dumps({"adapter": {"base": "tiny", "roles": roles}}))
    return path


@pytest.mark.parametrize(("roles", "is_same"), [(["read"], True), (["write"], False), (["write", "read"], False)])
def test_only_an_adapter_that_writes_changes_the_fingerprint(tmp_path: Path, roles: list[str], is_same: bool) -> None:
    lm = load(adapter_folder(tmp_path, roles), device="cpu")
    assert (lm.fingerprint == load("tiny", device="cpu").fingerprint) is is_same
    assert lm.reads_as == ("read" if "read" in roles else None)
    assert lm.writes_as == ("write" if "write" in roles else None)


def test_a_missing_adapter_is_one_line(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path, ["read"])
    (folder / "read" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_every_bundled_name_is_a_folder() -> None:
    for name, folder in folders.BUNDLED.items():
        assert folders.beside(name) == folder
        assert "memory3" in folders.settings(folder) or "mplus" in folders.settings(folder)
    assert folders.beside("no-such-model") is None
