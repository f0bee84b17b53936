"""The bench compares the filter with the equation, and both with the oracle."""

from __future__ import annotations

import random

import pytest

from remanence.bench.overlap import Options, by_windows, run
from remanence.errors import InputError
from tests.reference.overlap import overlap


def test_both_are_measured_on_pairs_that_overlap():
    advanced: list[int] = []
    found = run(Options(pairs=8, text_tokens=200, reference_tokens=16, repeats=2), advanced.append)
    assert advanced == [1, 1]
    ours, plain = (found["results"][name]["pairs_per_second"] for name in ("filter", "by_windows"))
    assert found["ratios"]["filter_to_by_windows"] == pytest.approx(ours / plain)
    with pytest.raises(InputError, match="pairs is 0"):
        Options(pairs=0)


def test_windows_side_by_side_are_the_equation():
    rng = random.Random(0)
    for size in (1, 5, 12):
        for _ in range(10):
            text, reference = ([rng.randrange(4) for _ in range(n)] for n in (rng.randint(1, 40), size))
            assert by_windows(text, reference) == pytest.approx(overlap(text, reference))
