"""A bank on disk or in RAM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remanence.bank import Bank

from .helpers import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["disk", "ram"])
def bank(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Bank]:
    with Bank.open(tmp_path / "bank" if request.param == "disk" else None, clock=clock) as bank:
        yield bank


@pytest.fixture
def disk_bank(tmp_path: Path, clock: Clock) -> Iterator[Bank]:
    with Bank.open(tmp_path / "bank", clock=clock) as bank:
        yield bank
