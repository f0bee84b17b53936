"""The oldest versions that were tested are the lower bounds of the metadata, and every bound holds here."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDS = [Requirement(need) for need in PROJECT["dependencies"]]
PINS = [line for line in (ROOT / "constraints" / "oldest.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
OLDEST = dict(line.split("==") for line in PINS)


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.name)
def test_the_lower_bound_is_what_was_tested(need: Requirement) -> None:
    (lowest,) = (bound.version for bound in need.specifier if bound.operator == ">=")
    assert Version(OLDEST[need.name]).release[: len(Version(lowest).release)] == Version(lowest).release
    assert OLDEST[need.name] in need.specifier


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.name)
def test_what_is_installed_is_allowed(need: Requirement) -> None:
    assert Version(version(need.name)).base_version in need.specifier


@pytest.mark.parametrize("name", ["torch", "transformers", "lancedb"])
def test_what_is_reached_into_ends_at_the_next_minor_version(name: str) -> None:
    (need,) = (need for need in NEEDS if need.name == name)
    (above,) = (Version(bound.version) for bound in need.specifier if bound.operator == "<")
    assert f"{above.major}.{above.minor - 1}" in need.specifier
