"""The fast filter gives what the equation says, for any texts, alone and in a batch."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.errors import InputError
from remanence.text.overlap import PAIRS, exceed, overlaps
from tests.reference.overlap import overlap

ids = st.lists(st.integers(0, 4), max_size=14)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=60), ids), max_size=6))
def test_it_is_the_longest_common_subsequence_within_a_window(pairs):
    assert overlaps(pairs) == pytest.approx([overlap(text, reference) for text, reference in pairs])


def test_texts_as_long_as_training_has_them():
    rng = random.Random(0)
    pairs = []
    for _ in range(3):
        text, reference = ([rng.randrange(8192) for _ in range(n)] for n in (300, 40))
        copied = [token for token in reference if rng.random() < 0.8]
        at = rng.randrange(200)
        pairs.append((text[:at] + copied + text[at:], reference))
    found = overlaps(pairs)
    assert found == pytest.approx([overlap(*pair) for pair in pairs])
    assert all(0.6 < share < 1 for share in found)


def test_a_subsequence_spread_over_more_than_the_window_does_not_count():
    reference = list(range(10))
    spread = [token for n in reference for token in (n, *([99] * 4))]
    assert overlaps([(reference, reference), (spread, reference)]) == [1.0, 0.5]


def test_ids_of_no_vocabulary_are_refused():
    with pytest.raises(InputError, match="below 0"):
        overlaps([([1, 5], [7, -1])])


def test_more_pairs_than_one_batch_keep_their_order():
    pairs = [([1, 2, 3, 4], [1] * (n % 4) + [9]) for n in range(PAIRS + 50)]
    assert overlaps(pairs) == pytest.approx([overlap(*pair) for pair in pairs])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=40), ids), max_size=6), st.sampled_from([0.3, 0.6, 0.9]))
def test_what_exceeds_is_what_overlaps_more(pairs, limit):
    assert exceed(pairs, limit) == [overlap(text, reference) > limit for text, reference in pairs]
