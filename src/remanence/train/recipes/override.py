"""Fields of a recipe given by hand: `shape.width=128`, `warmup.0.num_steps=50`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from remanence.errors import InputError, suggest

Recipe = TypeVar("Recipe")


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """`recipe` with each `path=value`; a value is JSON, or else a string.

    A path goes through fields, keys and numbers of places. Raises InputError for one that leads nowhere, and for a
    value of another type than what stood there.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not (path and equals):
            raise InputError(f"{setting!r} sets no field", "write field=value, as in shape.width=128")
        recipe = _replaced(recipe, path.split("."), _value(text), setting)
    return recipe


def leaves(part: Any, path: str = "") -> dict[str, Any]:
    """Everything that `override` can set, by its path."""
    parts = _parts(part)
    if not parts:
        return {path: part}
    return {
        leaf: value
        for name, entry in parts.items()
        for leaf, value in leaves(entry, f"{path}.{name}" if path else name).items()
    }


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _replaced(part: Any, path: Sequence[str], value: Any, setting: str) -> Any:
    if not path:
        return _fitting(part, value, setting)
    name, rest = path[0], path[1:]
    parts = _parts(part)
    if name not in parts:
        hint = suggest(name, list(parts)) if parts else "it has no fields"
        raise InputError(f"{setting!r}: there is no field {name!r}", hint)
    new = _replaced(parts[name], rest, value, setting)
    if isinstance(part, tuple):
        return tuple(new if str(place) == name else entry for place, entry in enumerate(part))
    return {**part, name: new} if isinstance(part, dict) else dataclasses.replace(part, **{name: new})


def _parts(part: Any) -> dict[str, Any]:
    if isinstance(part, tuple):
        return {str(place): entry for place, entry in enumerate(part)}
    if isinstance(part, dict):
        return part
    return {f.name: getattr(part, f.name) for f in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else {}


def _fitting(old: Any, value: Any, setting: str) -> Any:
    """`value` in the type of `old`; a field that may be None takes any number or None."""
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if old is None or value is None or type(value) is type(old):
        return value
    raise InputError(f"{setting!r}: {value!r} is no {type(old).__name__}", f"the recipe has {old!r} there")
