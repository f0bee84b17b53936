"""Fifty steps of every recipe of nano give the losses that were stored when the loop was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import remanence.lm.lm as lm_module
from tests.train.tiny_runs import LOSSES, STEPS, all_losses

ROUNDING = 2e-4
"""Largest difference of a step's loss, as a part of it: three times what was measured between AVX-512 (the stored
losses), AVX2 and no vector instructions (`ATEN_CPU_CAPABILITY`), 6.3e-5."""

GROWN_FROM = {"mplus/stage2": 10, "mplus/stage3": 0}
"""Steps from which rounding has grown into other rows being retrieved: stages that follow another with large steps."""

GROWN, GROWN_MEAN = 0.1, 2e-3
"""From there on: of a step's loss (3.6e-2 was measured), and of the mean over all steps (5.1e-4)."""


def differences(name: str, found: list[float], stored: list[float]) -> list[str]:
    """What differs by more than another processor explains, in words."""
    parts = [abs(ours - theirs) / theirs for ours, theirs in zip(found, stored, strict=True)]
    start = GROWN_FROM.get(name, STEPS)
    wrong = [f"{name}, step {i}: {part:.1e}" for i, part in enumerate(parts) if part > (ROUNDING, GROWN)[i >= start]]
    mean = abs(sum(found) - sum(stored)) / sum(stored)
    return [*wrong, *([f"{name}, mean of all steps: {mean:.1e}"] if mean > GROWN_MEAN else [])]


def test_losses_are_the_stored_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)  # random tiny weights prove nothing
    stored, found = json.loads(LOSSES.read_text(encoding="utf-8")), all_losses(tmp_path)
    assert found.keys() == stored.keys()
    assert all(len(values) == STEPS for values in stored.values())
    assert [line for name in stored for line in differences(name, found[name], stored[name])] == []
    for name, values in found.items():
        first, last = values[:5], values[-5:]  # of a step here and there: they are of different tasks
        assert min(last) < max(first), f"{name} learns nothing"
