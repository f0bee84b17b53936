"""Learning rates rise, stay and fall as their schedules say."""

from __future__ import annotations

import pytest

from remanence.train.core.schedule import FLOOR, rate_at


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", {0: 0.1, 9: 1.0, 50: 1.0, 99: 1.0}),
        ("wsd", {0: 0.1, 9: 1.0, 50: 1.0, 80: 1.0, 90: 0.5, 99: 0.05, 100: FLOOR}),
        ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 99: FLOOR}),
        ("tenth", {0: 0.1, 10: 0.55, 20: 0.1, 99: 0.1}),
    ],
)
def test_rates(schedule, at):
    found = {step: rate_at(schedule, step, 100, 10, 0.2) for step in at}
    assert found == pytest.approx(at, abs=1e-3)
