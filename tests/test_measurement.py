"""Evaluations and benchmarks share one envelope, which names commit and machine, but not the machine's owner."""

from __future__ import annotations

import getpass
import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from remanence import provenance
from remanence.errors import InputError
from remanence.measurement import MeasurementOptions, envelope, medians
from remanence.provenance import commit, machine


@dataclass(frozen=True)
class Options(MeasurementOptions):
    rows: int = 1
    share: float = 0.0
    answerable: bool = False


def test_a_bench_and_a_task_have_the_keys_of_earlier_results():
    systems, ratios = {"a": {"load_seconds": 1.5}}, {"a_over_b": 2.0}
    bench = json.loads(json.dumps(envelope("bench", "x", systems, conditions={"rows": 3}, ratios=ratios)))
    assert list(bench) == ["bench", "commit", "machine", "conditions", "results", "ratios"]
    assert (bench["results"], bench["conditions"], bench["ratios"]) == (systems, {"rows": 3}, ratios)
    more = {"n": 2, "seed": 0, "model": "tiny", "crossing_step": None}
    task = envelope("task", "x", systems, conditions={}, ratios={}, **more)
    assert list(task) == "task n seed commit machine model conditions systems ratios crossing_step".split()
    assert list(envelope("task", "x", None, conditions={}, table=[])) == "task commit machine conditions table".split()


def test_options_are_counts_from_one():
    assert Options(seed=0).rows == 1
    with pytest.raises(InputError, match="rows is 0 -> use 1 or more"):
        Options(rows=0)


def test_medians():
    assert medians([{"a": 1, "b": 2.0}, {"a": 9, "b": None}, {"a": 3, "b": 1.0}]) == {"a": 3, "b": None}


def test_the_commit_is_of_this_code_or_its_release():
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|remanence \S+", commit())


def test_outside_a_checkout_the_release_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    assert commit().startswith("remanence ")


def test_the_machine_tells_nothing_of_its_owner():
    text = json.dumps(machine())
    assert "num_cores" in text
    assert str(Path.home()) not in text
    assert platform.node() not in text
    assert getpass.getuser() not in text
