"""A model that starts with the copying circuits continues repeated random tokens before any training."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import torch

from remanence.train.core.losses import ANSWER
from remanence.train.core.model import build_model
from remanence.train.examples.batches import drill_kinds
from remanence.train.examples.mixture import _drill_example
from remanence.train.init.induction_init import start_with_copying
from remanence.train.init.word_vectors import word_vectors
from remanence.train.recipes.nano import NanoRecipe


def copied(start: bool, qk_norm: bool = False) -> float:
    model = build_model(replace(NanoRecipe().shape, qk_norm=qk_norm), 0)
    if start:
        start_with_copying(model, 0)
    rng = Random(1)
    rows = [_drill_example(rng, 112, 4096) for _ in range(4)]
    ids_BT = torch.tensor([row.ids for row in rows])
    answer_BT = torch.tensor([drill_kinds(row.ids) for row in rows])[:, 1:].eq(ANSWER)
    with torch.no_grad():
        right_BT = model(ids_BT).logits[:, :-1].argmax(-1).eq(ids_BT[:, 1:])
    return right_BT[answer_BT].float().mean().item()


def test_copying_is_there_before_the_first_step() -> None:
    assert copied(False) < 0.05
    assert copied(True) > 0.4
    assert copied(True, qk_norm=True) > 0.4


def test_the_recipe_fits_the_repository() -> None:
    with torch.device("meta"):
        model = build_model(NanoRecipe().shape, 0)
    assert 2 * sum(p.numel() for p in model.parameters()) < 32e6


def test_word_vectors_put_like_tokens_near_each_other() -> None:
    """Two pairs of tokens that stand in the same surroundings, and a token that never occurs."""
    rng = Random(0)
    lines = [[0, rng.choice((4, 5)), 1, 0, rng.choice((4, 5)), 1] for _ in range(200)]
    lines += [[2, rng.choice((6, 7)), 3, 2, rng.choice((6, 7)), 3] for _ in range(200)]
    vector_VC = word_vectors(lines, vocab_size=9, width=16)
    like_VV = torch.nn.functional.normalize(vector_VC, dim=1) @ torch.nn.functional.normalize(vector_VC, dim=1).T
    assert like_VV[4, 5] > 0.5 > like_VV[4, 6]
    assert like_VV[6, 7] > 0.5
    assert bool((vector_VC[8] == 0).all())
    model = build_model(NanoRecipe().shape, 0)
    start_with_copying(model, 0, torch.nn.functional.pad(vector_VC, (0, 240, 0, 8183)) * 4)
    weight_VC = model.model.embed_tokens.weight
    like = torch.nn.functional.cosine_similarity
    assert like(weight_VC[4], weight_VC[5], dim=0) > like(weight_VC[4], weight_VC[6], dim=0) + 0.1
