from __future__ import annotations

import importlib.metadata
import shutil
from types import SimpleNamespace

import pytest

from remanence.cli import checks


def states(outcome) -> dict[str, str]:
    return {check["name"]: check["state"] for check in outcome.json["checks"]}


def test_all_is_well(call, bank):
    outcome = call("doctor", "--json", model=True)
    assert outcome.code == 0
    assert outcome.json["ok"]
    assert {"python", "torch", "memory test", "bank contents", "bank matches", "disk"} <= states(outcome).keys()
    found = states(outcome)
    assert found.pop("training") == "warn", "tiny is random"
    assert set(found.values()) == {"ok"}
    assert "ok   memory test" in call("doctor", model=True).out


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
    outcome = call("doctor", "--model", "no/such-model", "--json")
    assert outcome.code == 1
    assert states(outcome)["model"] == "bad"
    assert states(outcome)["bank"] == "ok", "no bank yet is no error"


def test_a_bank_of_another_method(call, bank):
    outcome = call("doctor", "--method", "memory3:dense", "--json", model=True)
    assert outcome.code == 1
    assert states(outcome)["bank matches"] == "bad"
    assert "-> " in call("doctor", "--method", "memory3:dense", model=True).out


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
