"""The recipe of a comparison, not of a model: running text with and without memory (as in Memory³ Figure 11)."""

from __future__ import annotations

from remanence.train.recipes.nano import Phase, Recipe
from remanence.train.shapes import Shape


def nano_text() -> Recipe:
    """Six layers, books alone. With memory, a text reads five paragraphs of those before it, 8 tokens per head."""
    return Recipe(
        shape=Shape(num_layers=6),
        warmup=(Phase(600, 16, 208, (5, 5), 1, books=1.0, slots=8),),
        continual=(Phase(200, 16, 208, (5, 5), 1, books=1.0, slots=8),),
        plain_every=0,
        whole_every=0,
        text_stride=1,
        decay_share=0.6,
        eval_every=25,
        stages=("warmup", "control", "continual", "detached", "scratch", "scratch-continual"),
    )
