"""The recipe of a comparison: running text with and without memory (Memory³ Figure 11)."""

from __future__ import annotations

from remanence.train.core.shapes import Shape
from remanence.train.recipes.nano import NanoPhase, NanoRecipe


def nano_text() -> NanoRecipe:
    """Six layers, trained on books. With memory, a text reads five earlier paragraphs, 8 tokens per head each."""
    return NanoRecipe(
        shape=Shape(num_layers=6),
        warmup=(NanoPhase(600, 16, 208, (5, 5), 1, books=1.0, slots=8),),
        continual=(NanoPhase(200, 16, 208, (5, 5), 1, books=1.0, slots=8),),
        plain_every=0,
        whole_every=0,
        text_stride=1,
        decay_share=0.6,
        eval_every=25,
        stages=("warmup", "control", "continual", "detached", "scratch", "scratch-continual"),
    )
