"""The model card says what the benchmark files say, and what the checkpoint is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from remanence.bench.bank import NUM_LAYERS

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


def cells(goal: str) -> list[str]:
    """What was measured, and whether that reached the goal, in the row of the table that begins with `goal`."""
    [row] = [line for line in CARD.splitlines() if line.startswith(f"| {goal}")]
    return [cell.strip() for cell in row.split("|")[3:5]]


def both(value: float, value8: float, least: float, digits: int = 3) -> list[str]:
    reached = ["yes" if each >= least else "**no**" for each in (value, value8)]
    return [f"{value:.{digits}f}; {value8:.{digits}f} with 8", "; with 8 ".join(reached)]


def test_the_goals_are_those_of_the_benchmarks() -> None:
    facts, squad = results("facts-500")["systems"], results("squad-200")["systems"]
    bank = results("bank-100000")["results"]["bank"]
    every, eight = (results(f"recall-{kept}-tokens")["ratios"] for kept in ("all", "8"))
    exact, exact8, text = (facts[name]["exact_match"] for name in ("memory3", "memory3:paper", "retrieved_text"))
    f1, f1_8, f1_text = (squad[name]["f1"] for name in ("memory3", "memory3:paper", "retrieved_text"))
    marked = f"{exact:.3f} (all tokens); {exact8:.3f} (`memory3:paper`, 8)"
    assert cells("facts answered right") == [marked, both(exact, exact8, 0.9)[1]]
    assert f"**{exact * 100:.0f} of 100 held-out facts" in CARD
    assert f"kept, {exact8 * 100:.0f} with the paper's 8 per head" in CARD
    assert cells(">= 0.95 of `retrieved_text`") == both(exact / text, exact8 / text, 0.95)
    assert cells("SQuAD") == both(f1 / f1_text, f1_8 / f1_text, 0.9)
    first, decode = "first_token_retrieved_text_over_memory3_warm", "decode_memory3_warm_over_plain"
    assert cells("first token") == both(every[first], eight[first], 3, 2)
    assert cells("decoding") == both(every[decode], eight[decode], 0.9, 2)
    before = f"{bank['before_compact_median_seconds'] * 1e3:.1f}"
    median = f"median {bank['median_seconds'] * 1e3:.1f} ms ({before} before `compact`)"
    assert cells("a recall from 100,000") == [median, "yes" if bank["median_seconds"] < 0.01 else "**no**"]
    assert cells("RAM of that bench")[0] == f"{bank['peak_rss_bytes'] / 1e6:.0f} MB"


def test_the_shape_is_the_checkpoints() -> None:
    config = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    layers = config["num_hidden_layers"]
    assert f"{layers} layers (the first {layers // 2} read memory) of width {config['hidden_size']}" in CARD
    assert layers // 2 == NUM_LAYERS, "the bench of the bank stores memories of nano's shape"
    for text in (CARD, (ROOT / "docs/explanation/memory3.md").read_text(encoding="utf-8")):
        assert f"in {'the' if text is CARD else 'its'} {layers // 2} memory layers" in " ".join(text.split())
    assert f"{(NANO / 'model.safetensors').stat().st_size / 1e6:.1f} MB in bf16" in CARD


def test_the_figure_is_what_its_command_printed() -> None:
    """Of Memory³'s Figure 11: every run's loss on kept books, read as it was trained, and the gains."""
    found = results("figure11")
    table = dict(re.findall(r"^\| ((?:control|memory) [^|]+) \| [^|]+ \| ([\d.]+) \|", CARD, re.MULTILINE))
    runs, read = found["systems"], "kept_with_memory"
    assert table == {
        "control from scratch": f"{runs['warmup']['kept_without']:.4f}",
        "memory from scratch": f"{runs['scratch'][read]:.4f}",
        "control → control": f"{runs['control']['kept_without']:.4f}",
        "control → memory": f"{runs['continual'][read]:.4f}",
        "control → memory, no gradient through the writing": f"{runs['detached'][read]:.4f}",
        "memory → memory": f"{runs['scratch-continual'][read]:.4f}",
    }
    for gain in found["gains"].values():
        assert f"{gain:.4f}".replace("-", "−") in CARD or f"{gain:.3f}" in CARD
    assert f"at step {found['crossing_step']} of 200" in CARD


CHAT = (ROOT / "src/remanence/assets/nano-chat/README.md").read_text(encoding="utf-8")


def test_the_card_of_nano_chat_says_what_was_printed() -> None:
    found = results("nano-chat-unanswerable")["systems"]
    table = CHAT.partition("## When it does not know")[2].partition("## Compared with nano")[0]
    shown = {
        name: [f"{each[key]:.3f}" for key in ("answered", "exact_match", "abstained")] for name, each in found.items()
    }
    lines = re.findall(r"^\| ([\w:]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", table, re.MULTILINE)
    assert {name: cells for name, *cells in lines} == shown
    each = found["memory3"]
    said = f"it abstains on {round(each['abstained'] * 250)}; of 250 others it answers {round(each['answered'] * 250)}"
    assert f"{said}, {round(each['exact_match'] * 250)} of them right" in CHAT
    for exam, base, after in (("facts", "facts-500", "On SQuAD"), ("squad", "squad-200", "On SQuAD")):
        table = CHAT.partition("## Compared with nano")[2].partition(after)[0]
        for name, figures in results(f"nano-chat-{exam}")["systems"].items():
            nano = results(base)["systems"][name]
            cells = [f"{each[key]:.3f}" for each in (figures, nano) for key in ("exact_match", "f1")]
            assert f"| {name} | {' | '.join(cells)} |" in table
