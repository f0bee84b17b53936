"""The recipes by name and size: frozen dataclasses with every number of a training run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from remanence.errors import InputError, suggest
from remanence.train.recipes.chat import large_chat, nano_chat, only
from remanence.train.recipes.mplus import STAGES as MPLUS
from remanence.train.recipes.nano import nano
from remanence.train.recipes.nano_mplus import nano_mplus
from remanence.train.recipes.nano_text import nano_text
from remanence.train.recipes.retrofit import retrofit
from remanence.train.recipes.sequences import (
    continual_09b,
    continual_2b,
    continual_nano,
    warmup_09b,
    warmup_2b,
    warmup_nano,
)

CHAT = {"nano": nano_chat, **{size: partial(large_chat, size) for size in ("0.9b", "2b")}}
RECIPES: dict[str, dict[str, Callable[[], Any]]] = {
    "nano": {"nano": nano},
    "nano-text": {"nano": nano_text},
    "nano-chat": {"nano": nano_chat},
    "nano-mplus": {"nano": nano_mplus},
    "memory3/warmup": {"nano": warmup_nano, "0.9b": warmup_09b, "2b": warmup_2b},
    "memory3/continual": {"nano": continual_nano, "0.9b": continual_09b, "2b": continual_2b},
    "memory3/sft": {size: only(make, "sft") for size, make in CHAT.items()},
    "memory3/dpo": {size: only(make, "dpo") for size, make in CHAT.items()},
    **{f"mplus/{name}": sizes for name, sizes in MPLUS.items()},
    "retrofit": {"any": retrofit},
}
"""name -> size -> function that makes the recipe. The first size is the default."""


def recipe_of(name: str, size: str | None = None) -> Any:
    """The recipe `name` at `size` (None: the default). InputError, with the nearest name, if there is none."""
    if name not in RECIPES:
        raise InputError(f"no recipe is called {name!r}", suggest(name, list(RECIPES)))
    sizes = RECIPES[name]
    if size is not None and size not in sizes:
        raise InputError(f"{name} has no size {size!r}", f"use --at {' or '.join(sizes)}")
    return sizes[size or next(iter(sizes))]()
