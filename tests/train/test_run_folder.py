"""A run's folder says by what and on what every stage was made, and shows its curves."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from remanence.errors import InputError
from remanence.train.core.curves import draw_all
from remanence.train.core.run_folder import begin_stage, entries
from remanence.train.memory3.nano import start_run
from remanence.train.recipes.nano import NanoRecipe, nano
from tests.train.tiny_runs import run_stage, smaller


def recipe() -> NanoRecipe:
    phase = replace(smaller(nano()).warmup[0], num_steps=3)
    return replace(smaller(nano()), warmup=(phase,))


def test_every_stage_and_every_going_on_is_an_entry(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    file = data / "classic_books" / "train-00.jsonl.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(json.dumps({"text": "It was a long day at the harbour. " * 30}).encode()))
    (data / "unread.txt").write_text("nobody reads this")
    run_stage(start_run(recipe(), data, out), "warmup", 2, False)
    run = start_run(recipe(), data, out)
    run_stage(run, "warmup", 3, True)
    first, second = entries(out)
    assert (first["stage"], first["again"], second["again"]) == ("warmup", False, True)
    assert first["data"] == {"classic_books/train-00.jsonl.gz": file.stat().st_size}
    assert first["recipe"] == json.loads(json.dumps(first["recipe"]))
    assert first["recipe"]["shape"]["width"] == recipe().shape.width
    assert (first["seed"], first["processes"]) == (recipe().seed, 1)
    assert {"torch", "transformers", "python", "cpu"} <= first["machine"].keys()
    assert first["commit"]
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    (out / "run.json").write_text("[1]")
    with pytest.raises(InputError, match="not a list of objects"):
        begin_stage(run, "warmup", run.recipe)


def test_without_matplotlib_the_log_says_so_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run_stage(start_run(recipe(), None, tmp_path), "warmup", 2, False)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert "no curves were drawn" in last["note"]
    assert "pip install" in last["note"]
    assert not (tmp_path / "curves.png").exists()


def test_all_stages_are_drawn_and_what_is_no_number_is_not(tmp_path: Path) -> None:
    records = [
        {"stage": "warmup", "step": 2, "loss_answer": 3.0, "loss_text": 4.0, "samples": [{"answer": "x"}]},
        {"stage": "continual", "step": 2, "loss_answer": 2.0, "loss_memory8": 2.5, "memory8_exact": 0.5, "slots": None},
        {"stage": "latent", "step": 1, "pool_answer": 2.0, "later_loss": 2.5, "later_exact": 0.5},
        {"stage": "head", "layer": 1},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    draw_all(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
