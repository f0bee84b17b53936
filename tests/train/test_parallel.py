"""Two processes over gloo, with sharded parameters, are one process: in their losses, and in what they save."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import remanence.lm.lm as lm_module
from remanence.errors import InputError
from remanence.train.core import loop, parallel
from tests.train.tiny_sequences import make
from tests.train.two_processes import STEPS, begin_any, pass_through, run

ROOT = Path(__file__).parents[2]


def two(name: str, stage: str, folder: Path) -> list[float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.train.two_processes", name, stage, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return next(json.loads(line.removeprefix("losses ")) for line in done.stdout.splitlines() if line[:7] == "losses ")


@pytest.mark.parametrize("name", ["nano", "nano-text", "memory3"])
def test_two_processes_lose_what_one_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_module.proof, "prove", pass_through)
    if name == "memory3":
        make(tmp_path)
    for stage in ("warmup", "continual"):
        one, both = run(name, stage, tmp_path / "one"), two(name, stage, tmp_path / "two")
        assert both == pytest.approx(one, abs=1e-5), stage
        alone, task = begin_any(name, stage, tmp_path / "one")
        loop.resume(alone, task)
        shards, task = begin_any(name, stage, tmp_path / "two")
        loop.resume(shards, task)  # one process reads what two have written
        assert shards.step == STEPS
        assert shards.tokens == alone.tokens
        for part, master in alone.optimizer.masters.items():
            torch.testing.assert_close(shards.optimizer.masters[part], master, rtol=0, atol=1e-4)


def test_one_process_is_all_there_is() -> None:
    assert (parallel.rank(), parallel.size(), parallel.own([1, 2])) == (0, 1, [1, 2])
    assert float(parallel.average(torch.zeros(0))) == 0.0
    assert (parallel.decided(True), parallel.decided(False)) == (True, False)
    loss_N = torch.tensor([1.0, 3.0], requires_grad=True)
    parallel.average(loss_N).backward()
    assert loss_N.grad is not None
    assert loss_N.grad.tolist() == [0.5, 0.5]
    assert not parallel.mean(loss_N).requires_grad


def test_rows_that_are_too_few_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 3)
    with pytest.raises(InputError, match="2 examples cannot be divided among 3 processes"):
        parallel.own([1, 2])
