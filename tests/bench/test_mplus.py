"""The bench of a latent pool runs at a small size and its ratios are those of its figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remanence.bench import mplus
from remanence.errors import InputError


def test_it_writes_asks_and_compares(monkeypatch):
    shape = mplus.SHAPES["nano"]
    small = replace(shape, model={**shape.model, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64})
    monkeypatch.setitem(mplus.SHAPES, "nano", small)
    told: list[int] = []
    result = mplus.run(mplus.Options(tokens=300, repeats=1), told.append)
    assert sum(told) == 900
    assert {"plain", "resident", "offload", "offload_int8"} == set(result["results"])
    one, other = result["results"]["resident"], result["results"]["plain"]
    ratio = result["ratios"]["first_token_to_plain"]
    assert ratio == pytest.approx(one["first_token_seconds"] / other["first_token_seconds"])
    assert result["ratios"]["writing_to_plain_pass"] > 0


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match="no shape is called 'nanno'"):
        mplus.Options("nanno")
    with pytest.raises(InputError, match="less than a chunk -> use 128 or more"):
        mplus.Options(tokens=5)
