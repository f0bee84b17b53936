"""Fields of a recipe given by hand: `shape.width=128`, `warmup.0.num_steps=50`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from remanence.errors import InputError, suggest

Recipe = TypeVar("Recipe")


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """`recipe` with each `path=value`; a value is JSON, or else a string.

    A path goes through fields, keys and numbers of places. Raises InputError for one that leads nowhere, and for a
    value that its field's type does not allow.
    """
    values = _plain(asdict(recipe))  # type: ignore[call-overload]
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not (path and equals):
            raise InputError(f"{setting!r} sets no field", "write field=value, as in shape.width=128")
        _put(values, path.split("."), _value(text), setting)
    try:
        return TypeAdapter(type(recipe)).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", f"given was {first['input']!r}"
        ) from error


def leaves(part: Any, path: str = "") -> dict[str, Any]:
    """Every single value of a recipe (as a dict) by the path that sets it."""
    parts = _parts(part)
    if not parts:
        return {path: part}
    entries = ((f"{path}.{name}" if path else name, entry) for name, entry in parts.items())
    return {leaf: value for name, entry in entries for leaf, value in leaves(entry, name).items()}


def _value(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise InputError(f"{constant} is no number to train with", "use a finite one")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError:
        return text


def _put(values: Any, path: Sequence[str], value: Any, setting: str) -> None:
    name, rest, parts = path[0], path[1:], _parts(values)
    if name not in parts:
        hint = suggest(name, list(parts)) if parts else "it has no fields"
        raise InputError(f"{setting!r}: there is no field {name!r}", hint)
    if rest:
        _put(parts[name], rest, value, setting)
    else:
        values[int(name) if isinstance(values, list) else name] = value


def _parts(part: Any) -> dict[str, Any]:
    if isinstance(part, list | tuple):
        return {str(place): entry for place, entry in enumerate(part)}
    return part if isinstance(part, dict) else {}


def _plain(value: Any) -> Any:
    """Lists where there were tuples, so that an entry can be set."""
    return json.loads(json.dumps(value))
