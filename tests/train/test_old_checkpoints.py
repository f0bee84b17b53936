"""Runs that an earlier version of the code has begun (commit 13b43b8) are resumed, and their losses are the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import remanence.lm.lm as lm_module
from remanence.train.core import checkpoint, loop
from remanence.train.core.loop import Run, Task
from remanence.train.core.run_folder import entries
from remanence.train.examples.corpora import Corpora
from remanence.train.memory3.nano import start_run
from remanence.train.memory3.warmup import warmup_task
from remanence.train.recipes.nano import NanoRecipe
from remanence.train.recipes.nano_mplus import MPlusRecipe
from tests.train.tiny_runs import PARAGRAPHS, begin_latent, losses

RUNS = Path(__file__).parents[1] / "golden" / "runs"
"""Each folder holds `run.json`, a checkpoint, and what the run needs beside it; `losses.json` the next four losses."""


@pytest.fixture(autouse=True)
def _unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)  # random tiny weights prove nothing


def recipe_in(folder: Path, recipe_class: type) -> Any:
    """The recipe that `run.json` tells of."""
    (entry,) = entries(folder)
    return TypeAdapter(recipe_class).validate_json(json.dumps(entry["recipe"]))


def begin_nano(folder: Path) -> tuple[Run, Task]:
    run = start_run(recipe_in(folder, NanoRecipe), None, folder)
    run.corpora = Corpora(paragraphs=PARAGRAPHS, heldout_paragraphs=PARAGRAPHS[:8])
    return run, warmup_task(run)


def begin_mplus(folder: Path) -> tuple[Run, Task]:
    return begin_latent(folder, recipe_in(folder, MPlusRecipe))


@pytest.mark.parametrize(("name", "begin"), [("nano", begin_nano), ("mplus", begin_mplus)])
def test_a_run_of_earlier_code_is_resumed(tmp_path: Path, name: str, begin: Callable[[Path], tuple[Run, Task]]) -> None:
    folder = shutil.copytree(RUNS / name, tmp_path / name)
    run, task = begin(folder)
    run.log_every, run.save_seconds = 1000, 1e9
    loop.resume(run, task)
    assert not (folder / "log.jsonl").exists() or "changed" not in (folder / "log.jsonl").read_text()
    expected = json.loads((RUNS / "losses.json").read_text())[name]
    assert losses(run, task, run.step + len(expected)) == pytest.approx(expected, rel=1e-3)


def test_the_names_in_a_checkpoint_are_those_of_earlier_code(tmp_path: Path) -> None:
    old = json.loads((RUNS / "nano" / "warmup" / "progress.json").read_text())
    run, task = begin_nano(shutil.copytree(RUNS / "nano", tmp_path / "nano"))
    loop.resume(run, task)
    loop.save(run, task)
    new = checkpoint.load(tmp_path / "nano" / "warmup")
    assert new.progress.keys() == old.keys()
    assert new.progress["watched"].keys() == old["watched"].keys()
    assert new.progress["recipe"].keys() == old["recipe"].keys()
    assert new.weights.keys() == checkpoint.load(RUNS / "nano" / "warmup").weights.keys()
