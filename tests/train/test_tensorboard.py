"""Event files hold what the log holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from remanence.errors import MissingExtra
from remanence.train.core import loop
from remanence.train.core.tensorboard import tensorboard
from remanence.train.recipes.nano import nano
from tests.train.tiny_runs import begin, smaller


def scalars(folder: Path, stage: str, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard" / stage))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_every_figure_of_the_log_is_a_scalar(tmp_path: Path) -> None:
    run, task = begin(tmp_path, smaller(nano()), "warmup")
    run.log_every, told = 2, []
    with tensorboard(tmp_path) as sink:
        run.log_sinks = (told.append, sink)
        loop.train(run, task, 4)
        run.log({"stage": "head", "layer": 1, "name": "no figure", "nothing": None})
    assert [record["step"] for record in told[:2]] == [2, 4]
    for name in ("loss_answer", "loss_text", "tokens_per_second"):
        expected = [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in told[:2]]
        assert scalars(tmp_path, "warmup", name) == expected
    assert scalars(tmp_path, "head", "layer") == [(0, 1.0)]


def test_steps_that_are_trained_again_are_shown_once(tmp_path: Path) -> None:
    with tensorboard(tmp_path) as sink:
        for step in (1, 2, 3):
            sink({"stage": "a", "step": step, "loss": float(step)})
        sink({"stage": "a", "step": 3, "went_back_to": 1, "samples": [{"question": "q", "gold": "g", "answer": "a"}]})
        sink({"stage": "a", "step": 2, "loss": 9.0})
    assert scalars(tmp_path, "a", "loss") == [(1, 1.0), (2, 9.0)]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"--tensorboard needs 'tensorboard' -> `pip install '\.\[train\]'`"):
        tensorboard(tmp_path).__enter__()
