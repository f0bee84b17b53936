"""A divergence is told from a hard batch, and a run that diverges goes back and comes through."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remanence.errors import InputError
from remanence.train.core import loop
from remanence.train.core.divergence import GuardConfig, LossHistory, judge
from remanence.train.recipes.nano import nano
from tests.train.tiny_runs import begin, smaller

CONFIG = GuardConfig(window=8, nats=1.0, patience=3)


def judged(losses: list[float], config: GuardConfig = CONFIG) -> tuple[LossHistory, str | None]:
    watched, reason = LossHistory(), None
    for loss in losses:
        watched, reason = judge(config, watched, loss, 1.0)
    return watched, reason


def test_one_hard_batch_is_none_and_three_in_a_row_are() -> None:
    calm = [2.0, 2.1, 1.9, 2.0, 2.05]
    assert judged([*calm, 9.0, 9.0])[1] is None
    assert not judged([*calm, 9.0])[0].is_calm
    assert judged([*calm, 9.0, 9.0, 2.0])[0].is_calm
    assert judged([*calm, 9.0, 9.0, 9.0])[1] == "3 losses in a row above 3.000, the last 9.000"
    assert judged([9.0, 9.0, 9.0])[1] is None, "nothing is known yet"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_no_number_is_a_divergence_at_once(loss: float, norm: float) -> None:
    watched, reason = judge(CONFIG, LossHistory(), loss, norm)
    assert reason is not None
    assert "nan" in reason or "inf" in reason
    assert watched == LossHistory()


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_a_loss_that_wanders_within_a_nat_is_left_alone(losses: list[float]) -> None:
    watched, reason = judged(losses)
    assert reason is None
    assert watched.calm == tuple(losses[-CONFIG.window :])


def test_a_run_that_diverges_goes_back_and_comes_through(tmp_path: Path) -> None:
    """A rate ten thousand times too high from step 12 on: lowered until the loss falls again."""
    guard = GuardConfig(window=8, nats=0.5, patience=2, rewinds=6, lower=0.01)
    run, task = begin(tmp_path, replace(smaller(nano()), guard=guard), "warmup")
    run.save_seconds = 0.0
    steep = replace(task, rate=lambda step: 1e4 if step >= 12 else 1.0)
    loop.train(run, steep, 30)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    back = [record for record in log if "went_back_to" in record]
    assert 1 <= len(back) <= 6
    assert all(record["went_back_to"] <= 12 < record["step"] for record in back)
    assert all(record["reason"] for record in back)
    assert run.step == 30
    assert run.spikes >= len(back)
    assert run.rate == pytest.approx(0.01 ** len(back))
    assert run.skipped == sum(last - first + 1 for first, last in (record["left_out"] for record in back))
    assert all(first <= 12 <= last for first, last in (back[0]["left_out"],))
    assert max(run.history.calm) < 7
    assert all(torch.isfinite(master).all() for master in run.optimizer.masters.values())


def gone_back(folder: Path, broken: dict[int, float], end: int, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """[from, to] of each way back of a run that saves every five steps; batch -> what is added to its loss."""
    guard = GuardConfig(window=8, nats=0.5, patience=3, rewinds=8, lower=1.0)
    run, task = begin(folder, replace(smaller(nano()), guard=guard), "warmup")
    run.save_seconds = 4.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(run.step))

    def loss(number: int) -> tuple[torch.Tensor, int]:
        found, tokens = task.loss(number)
        return found + broken.get(number, 0.0), tokens

    run.log({"begins": True})
    loop.train(run, replace(task, loss=loss), end)
    lines = (folder / "log.jsonl").read_text().split('{"begins": true}\n')[-1]
    log = [json.loads(line) for line in lines.splitlines()]
    return [[record["step"], record["went_back_to"]] for record in log if "went_back_to" in record]


def test_a_checkpoint_that_calm_steps_have_followed_is_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gone_back(tmp_path / "a", {14: math.nan}, 20, monkeypatch) == [[14, 10]]
    spike = dict.fromkeys(range(14, 18), 3.0)
    assert gone_back(tmp_path / "b", spike, 20, monkeypatch) == [[16, 10]], "high losses do not make it a bad one"


def test_one_that_they_have_not_is_never_gone_back_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {11: math.nan, 13: math.nan, 19: math.nan}
    assert gone_back(tmp_path, broken, 20, monkeypatch) == [[11, 5], [6, 5], [10, 5]]
    run, task = begin(tmp_path, smaller(nano()), "warmup")
    loop.resume(run, task)
    assert run.spikes == 3
    assert (run.step, run.skipped, run.rewinds) == (20, 15, 3), "what was left out stays left out after a kill"


def test_another_runs_checkpoint_is_never_gone_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gone_back(tmp_path, {}, 12, monkeypatch) == []
    assert gone_back(tmp_path, {3: math.nan}, 6, monkeypatch) == [[3, 0]]


@pytest.mark.parametrize("wrong", [{"window": 0}, {"patience": 0}, {"lower": 0.0}])
def test_settings_that_make_no_guard_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        GuardConfig(**wrong)  # type: ignore[arg-type]
    assert judge(GuardConfig(window=1), LossHistory(), 1.0, 1.0)[1] is None


def test_a_run_that_cannot_be_saved_stops_and_says_so(tmp_path: Path) -> None:
    guard = GuardConfig(rewinds=2)
    run, task = begin(tmp_path, replace(smaller(nano()), guard=guard), "warmup")

    def broken(number: int) -> tuple[torch.Tensor, int]:
        loss, tokens = task.loss(number)
        return loss * (math.nan if number >= 3 else 1.0), tokens

    with pytest.raises(InputError, match=r"warmup diverged 3 times, last at step 0: the loss is nan"):
        loop.train(run, replace(task, loss=broken), 10)
    before, _ = begin(tmp_path / "again", smaller(nano()), "warmup")
    run.optimizer.copy_to_model()
    for name, master in before.optimizer.masters.items():
        assert torch.equal(master, run.optimizer.masters[name]), "the last good weights"
