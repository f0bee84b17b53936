"""Metrics on examples whose values were worked out by hand."""

from __future__ import annotations

import pytest

from remanence.eval.metrics import best, exact_match, f1, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Ferry, at 9:40!", "ferry at 940"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),  # "the" is an article only as a word
        ("  \t\n", ""),
        ("Émile's café", "émiles café"),
        ("U.S.", "us"),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [("the Blue door.", "blue door", 1.0), ("blue doors", "blue door", 0.0), ("", "blue", 0.0), ("the", "", 1.0)],
)
def test_exact_match(answer, gold, expected):
    assert exact_match(answer, gold) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("blue door", "the blue door", 1.0),
        ("red door", "blue door", 0.5),  # 1 shared; precision 1/2, recall 1/2
        ("door", "big blue door", 0.5),  # precision 1, recall 1/3
        ("no no no yes", "no no maybe", 4 / 7),  # 2 shared of 4 and 3
        ("blue", "red", 0.0),
        ("", "red", 0.0),
        ("the", "a", 1.0),  # both empty
    ],
)
def test_f1(answer, gold, expected):
    assert f1(answer, gold) == pytest.approx(expected)


def test_best_takes_the_most_similar_right_answer():
    assert best(f1, "red door", ["blue door", "red door, left"]) == pytest.approx(0.8)
    assert best(exact_match, "two", ["2", "two"]) == 1.0
