"""The bench of a training step measures what it says, beside the arithmetic of the paper."""

from __future__ import annotations

import pytest

from remanence.errors import InputError
from remanence.train.core.shapes import SHAPES, MemoryShape
from remanence.train.cost.flops import training_flops
from remanence.train.cost.step_time import STEPS, Options, run


def test_every_kind_of_step_is_measured() -> None:
    advanced: list[int] = []
    found = run(Options(rows=1, tokens=64, repeats=1), advanced.append)
    assert sum(advanced) == 2 * len(STEPS)
    for figures in found["results"].values():
        assert figures["tokens_per_second"] == pytest.approx(64 / figures["seconds_per_step"])
    shape = SHAPES["nano"]
    arithmetic = training_flops(shape, 64, MemoryShape()) / training_flops(shape, 64)
    assert found["ratios"]["continual_to_warmup_by_arithmetic"] == pytest.approx(arithmetic)
    seconds = {name: figures["seconds_per_step"] for name, figures in found["results"].items()}
    assert found["ratios"]["detached_to_warmup"] == pytest.approx(seconds["detached"] / seconds["warmup"])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"shape": "nanoo"}, "did you mean 'nano'"),
        ({"tokens": 100}, "a multiple of 64"),
        ({"rows": 0}, "1 or more"),
        ({"tokens": 2048}, "use at most 1856"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Options(**wrong)  # type: ignore[arg-type]
