"""Recipes by name: every number that a training run needs, frozen."""

from __future__ import annotations

from collections.abc import Callable

from remanence.train.recipes.nano import Recipe, nano
from remanence.train.recipes.nano_mplus import LatentRecipe, nano_mplus
from remanence.train.recipes.nano_text import nano_text

RECIPES: dict[str, Callable[[], Recipe]] = {"nano": nano, "nano-text": nano_text}
LATENT_RECIPES: dict[str, Callable[[], LatentRecipe]] = {"nano-mplus": nano_mplus}
