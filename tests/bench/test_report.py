"""A bench's result has one shape, names its commit and machine, and nothing of whose machine it is."""

from __future__ import annotations

import getpass
import json
import platform
import re
from pathlib import Path

from remanence import provenance
from remanence.bench.report import commit, machine, medians, result


def test_the_shape_is_the_same_for_every_bench():
    made = json.loads(json.dumps(result("x", {"a": {"load_seconds": 1.5}}, {"a_over_b": 2.0}, rows=3)))
    assert {"bench", "commit", "machine", "results", "ratios"} <= set(made)
    assert made["results"] == {"a": {"load_seconds": 1.5}}
    assert made["conditions"] == {"rows": 3}


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
