"""A model that starts with the copying circuits continues repeated random tokens before any training."""

from __future__ import annotations

from random import Random

import torch

from remanence.train.batches import drill_kinds
from remanence.train.circuits import start_with_copying
from remanence.train.losses import ANSWER
from remanence.train.model import build_model
from remanence.train.recipes.nano import RECIPES, Recipe
from remanence.train.rows import _drill


def copied(start: bool) -> float:
    model = build_model(Recipe().shape, 0)
    if start:
        start_with_copying(model, 0)
    rng = Random(1)
    rows = [_drill(rng, 112, 4096) for _ in range(4)]
    ids_BT = torch.tensor([row.ids for row in rows])
    answer_BT = torch.tensor([drill_kinds(row.ids) for row in rows])[:, 1:].eq(ANSWER)
    with torch.no_grad():
        right_BT = model(ids_BT).logits[:, :-1].argmax(-1).eq(ids_BT[:, 1:])
    return right_BT[answer_BT].float().mean().item()


def test_copying_is_there_before_the_first_step() -> None:
    assert copied(False) < 0.05
    assert copied(True) > 0.4


def test_recipes_fit_the_repository() -> None:
    for make in RECIPES.values():
        recipe = make()
        with torch.device("meta"):
            model = build_model(recipe.shape, 0)
        assert 2 * sum(p.numel() for p in model.parameters()) < 32e6
        assert all(phase.passages[1] <= 5 for phase in (*recipe.warmup, *recipe.continual))
