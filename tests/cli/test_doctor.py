from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from remanence.cli import checks
from remanence.lm.folders import BUNDLED


def states(outcome) -> dict[str, str]:
    return {check["name"]: check["state"] for check in outcome.json["checks"]}


def test_all_is_well(call, bank):
    outcome = call("doctor", "--deep", "--json", model=True)
    assert outcome.code == 0
    assert outcome.json["ok"]
    assert {"python", "torch", "memory test", "bank contents", "bank matches", "disk"} <= states(outcome).keys()
    found = states(outcome)
    assert found.pop("training") == "warn", "tiny is random"
    assert set(found.values()) == {"ok"}
    assert "ok   memory test" in call("doctor", "--deep", model=True).out


def test_files_are_checked_without_loading_anything(call, bank):
    outcome = call("doctor", "--json")
    found = states(outcome)
    assert (outcome.code, found["model"], found["training"], found["bank contents"]) == (0, "ok", "ok", "ok")
    assert not {"memory test", "fingerprint", "embedder", "bank matches"} & found.keys()
    messages = {check["name"]: check["message"] for check in outcome.json["checks"]}
    assert messages["model"].startswith("nano: llama, 8 layers, width 256, 14.7 MB")
    assert "doctor --deep" in messages["deep checks"]
    mplus = {check["name"]: check["message"] for check in call("doctor", "--method", "mplus", "--json").json["checks"]}
    assert mplus["model"].startswith("nano-mplus: adapters (write, read) of nano: llama")
    assert "model" not in states(call("doctor", "--no-model", "--deep", "--json"))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("nano", lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "cannot be read"),
        ("nano", lambda folder: cut(folder / "model.safetensors"), "cannot be read"),
        ("nano", lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        ("nano", lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json' cannot be read"),
        ("nano", lambda folder: (folder / "config.json").write_text("{"), "config.json' cannot be read"),
        ("nano", lambda folder: (folder / "config.json").unlink(), "there is no model"),
        ("nano", lambda folder: (folder / "remanence.json").write_text("[]"), "is not an object of objects"),
        ("nano", lambda folder: index(folder), "lacks part-2.safetensors"),
        ("nano-mplus", lambda folder: (folder / "latent.safetensors").unlink(), "latent.safetensors' cannot be read"),
        ("nano-mplus", lambda folder: (folder / "write" / "adapter_config.json").unlink(), "cannot be read"),
    ],
)
def test_files_that_would_keep_a_model_from_loading(call, tmp_path, name, change, words):
    folder = Path(shutil.copytree(BUNDLED[name], tmp_path / "model"))
    assert call("doctor", "--model", "model", "--json").code == 0
    change(folder)
    outcome = call("doctor", "--model", "model", "--json")
    (problem,) = [check for check in outcome.json["checks"] if check["state"] == "bad"]
    assert (outcome.code, problem["name"]) == (1, "model")
    assert words in problem["message"]
    assert problem["fix"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def index(folder: Path) -> None:
    names = {"a": "model.safetensors", "b": "part-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("settings", "method", "expected"),
    [
        ({"memory3": {"kept_tokens": None}}, "memory3", ["ok"]),
        ({}, "memory3:paper", ["warn"]),
        ({}, "memory3:dense", []),
        ({}, "retrieved_text", []),
    ],
)
def test_a_model_that_was_not_trained_for_memory(settings, method, expected):
    lm = SimpleNamespace(name="some-model", settings=settings)
    assert [check.state for check in checks.training(lm, method)] == expected
    assert list(checks.training(None, method)) == []


def test_a_model_that_is_not_there(call):
    for more in ([], ["--deep"]):
        outcome = call("doctor", "--model", "no/such-model", "--json", *more)
        assert outcome.code == 1
        assert states(outcome)["model"] == "bad"
        assert states(outcome)["bank"] == "ok", "no bank yet is no error"


def test_a_bank_of_another_method(call, bank):
    outcome = call("doctor", "--deep", "--method", "memory3:dense", "--json", model=True)
    assert outcome.code == 1
    assert states(outcome)["bank matches"] == "bad"
    assert "-> " in call("doctor", "--deep", "--method", "memory3:dense", model=True).out


def test_a_damaged_bank(call, bank):
    (next(bank.rglob("*.lance/data/*"))).write_bytes(b"damaged")
    outcome = call("doctor", "--no-model", "--json")
    assert outcome.code == 1
    assert "bad" in {check["state"] for check in outcome.json["checks"] if check["name"].startswith("bank")}


def test_little_disk_space_is_a_warning(call, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    outcome = call("doctor", "--no-model", "--json")
    assert outcome.code == 0
    assert states(outcome)["disk"] == "warn"


@pytest.mark.parametrize(("installed", "said"), [("0.1", "0.1 is outside"), (None, "is not installed")])
def test_a_package_out_of_range(monkeypatch, installed, said):
    def version(name):
        if name == "torch" and installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed if name == "torch" else real(name)

    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    (check,) = [check for check in checks.environment() if check.name == "torch"]
    assert (check.state, said in check.message) == ("bad", True)
    assert check.fix.startswith("pip install 'torch")
