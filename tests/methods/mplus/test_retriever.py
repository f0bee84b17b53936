"""Scores and losses of the retriever against loops."""

from __future__ import annotations

import math

import torch

from remanence.methods.mplus.retriever import balanced_loss, contrastive_loss, scores

QUERY = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
KEY = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 0, 0, 0, 0]])


def by_hand(b: int, m: int) -> float:
    chances = [1 / (1 + math.exp(-float(QUERY[b, t] @ KEY[m]))) for t in range(5) if MASK[b, t]]
    return sum(chances) / len(chances)


def test_the_sigmoid_comes_before_the_mean_and_padding_does_not_count():
    found = scores(QUERY, KEY, MASK)
    assert all(math.isclose(found[b, m], by_hand(b, m), abs_tol=1e-5) for b in range(3) for m in range(7))


def test_the_balanced_loss_is_the_mean_over_each_side():
    score, own = torch.tensor([0.9, 0.4, 0.2]), torch.tensor([True, False, False])
    wanted = (-math.log(0.9) + (-math.log(0.6) - math.log(0.8)) / 2) / 2
    assert math.isclose(float(balanced_loss(score, own)), wanted, abs_tol=1e-4)
    assert math.isclose(float(balanced_loss(score[:1], own[:1])), -math.log(0.9) / 2, abs_tol=1e-4)


def test_the_contrastive_loss_is_a_softmax_of_each_own_row_against_the_others():
    odds, own = (
        torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]]),
        torch.tensor([[True, True, False, False], [False] * 4]),
    )
    others = math.exp(0 / 0.5) + math.exp(-1 / 0.5)
    wanted = sum(-math.log(math.exp(x / 0.5) / (math.exp(x / 0.5) + others)) for x in (2.0, 1.0)) / 2
    assert math.isclose(float(contrastive_loss(odds, own, 0.5)), wanted, abs_tol=1e-5)
