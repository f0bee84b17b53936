"""The model card says what the benchmark files say, and what the checkpoint is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NANO = ROOT / "src/remanence/assets/nano"
CARD = (NANO / "README.md").read_text(encoding="utf-8")
WHAT_IT_DOES = CARD.partition("## What it does")[2]


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


def rows(table: str) -> dict[str, list[str]]:
    """First word of each row of a table -> its last two cells."""
    found = re.findall(r"^\| ([\w:]+).*\| ([\d.]+) \| ([\d.]+) \|$", table, re.MULTILINE)
    return {name: [exact, f1] for name, exact, f1 in found}


@pytest.mark.parametrize(("benchmark", "num_systems"), [("facts-500", 4), ("squad-200", 5)])
def test_the_tables_are_those_of_the_benchmarks(benchmark: str, num_systems: int) -> None:
    facts, _, rest = WHAT_IT_DOES.partition("`remanence eval squad")
    table = facts if benchmark == "facts-500" else rest.partition("`remanence demo")[0]
    measured = results(benchmark)["systems"]
    expected = {name: [f"{each[key]:.3f}" for key in ("exact_match", "f1")] for name, each in measured.items()}
    assert len(expected) == num_systems
    assert rows(table) == expected


def test_the_goals_are_those_of_the_benchmarks() -> None:
    goals = CARD.partition("## Goals")[2].partition("## What it does")[0]
    systems, bank = results("facts-500")["systems"], results("bank-100000")["results"]["bank"]
    assert f"{systems['memory3']['exact_match']:.3f} (all tokens)" in goals
    assert f"{systems['memory3:paper']['exact_match']:.3f} (`memory3:paper`, 8)" in goals
    assert f"median {bank['median_seconds'] * 1e3:.1f} ms" in goals
    for name, kept in (("recall-all-tokens", ""), ("recall-8-tokens", " with 8")):
        ratios = results(name)["ratios"]
        assert f"{ratios['first_token_retrieved_text_over_memory3_warm']:.2f}{kept}" in goals
        assert f"{ratios['decode_memory3_warm_over_plain']:.2f}{kept}" in goals


def test_the_shape_is_the_checkpoints() -> None:
    config = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    layers = config["num_hidden_layers"]
    assert f"{layers} layers (the first {layers // 2} read memory) of width {config['hidden_size']}" in CARD
    assert f"{(NANO / 'model.safetensors').stat().st_size / 1e6:.1f} MB in bf16" in CARD
