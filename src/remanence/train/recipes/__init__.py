"""Recipes by name: every number that a training run needs, frozen."""

from __future__ import annotations

from collections.abc import Callable

from remanence.train.recipes.nano import Recipe
from remanence.train.recipes.nano_text import nano_text

RECIPES: dict[str, Callable[[], Recipe]] = {"nano": Recipe, "nano-text": nano_text}
