"""The index gives what the formula says, and ties to the lower number."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.text.bm25 import Bm25
from tests.reference.references import bm25

words = st.lists(st.sampled_from("abcdef"), max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(words, min_size=1, max_size=7), words, st.integers(1, 4), st.integers(0, 4), st.integers(0, 4))
def test_best_are_those_with_the_highest_score(texts, query, limit, first, width):
    if not any(texts):
        texts = [["a"]]
    without = range(first, first + width)
    scores = {r: bm25(texts, query, r) for r in range(len(texts)) if r not in without}
    expected = sorted((r for r, score in scores.items() if score > 0), key=lambda r: (-scores[r], r))[:limit]
    index = Bm25(texts)
    assert index.scores(query).tolist() == [bm25(texts, query, r) for r in range(len(texts))]
    assert index.best(query, limit, without) == expected


@pytest.mark.parametrize("texts", [[], [[]], [[], []]])
def test_nothing_to_find_is_nothing_found(texts):
    assert Bm25(texts).best(["a"], 3) == []
