"""Fifty steps of every recipe of nano give the losses that were stored when the loop was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import remanence.lm.lm as lm_module
from tests.train.tiny_runs import LOSSES, STEPS, all_losses


def test_losses_are_the_stored_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)  # random tiny weights prove nothing
    stored, found = json.loads(LOSSES.read_text(encoding="utf-8")), all_losses(tmp_path)
    assert found.keys() == stored.keys()
    for name, values in stored.items():
        assert len(values) == STEPS
        assert found[name] == pytest.approx(values, abs=1e-4), name
        first, last = found[name][:5], found[name][-5:]  # of a step here and there: they are of different tasks
        assert min(last) < max(first), f"{name} learns nothing"
