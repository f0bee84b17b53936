"""The fields of a recipe: checks of their values, their paths, and new values for them (`shape.width=128`)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from remanence.errors import InputError, suggest

RecipeT = TypeVar("RecipeT")
STAGE_NAME = re.compile(r"[a-z0-9-]+")
RESERVED = ("export", "tokenizer", "tensorboard")
"""Folders in a run's folder that no stage may use. Exports of other stages are in `export-STAGE`."""


def check_stages(**names: str | None) -> None:
    """InputError if a stage's name (given by the field that holds it) cannot be a folder in a run's folder."""
    for field, name in names.items():
        if name is None:
            continue
        if not STAGE_NAME.fullmatch(name):
            raise InputError(f"{field} is {name!r}", "use small letters, digits and hyphens, as in warmup-2")
        if name in RESERVED or name.startswith("export-"):
            raise InputError(f"{field} is {name!r}, a folder that every run uses itself", "choose another name")


def check_decay(decay_share: float) -> None:
    """InputError if `decay_share` is not a share of a run's steps."""
    if not 0 < decay_share <= 1:
        raise InputError(f"decay_share is {decay_share}", "use a share of the steps, above 0 and at most 1")


def override(recipe: RecipeT, settings: Sequence[str]) -> RecipeT:
    """A copy of the dataclass `recipe` with each `path=value` applied. A value is JSON, or else a string.

    A path consists of field names, keys and list indices. Raises InputError for a path that does not exist and for a
    value that the field's type does not allow.
    """
    values = _plain(asdict(recipe))  # type: ignore[call-overload]
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not (path and equals):
            raise InputError(f"{setting!r} sets no field", "write FIELD=VALUE, as in shape.width=128")
        _put(values, path.split("."), _value(text), setting)
    try:
        return TypeAdapter(type(recipe)).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", f"the value was {first['input']!r}"
        ) from error


def leaves(part: Any, path: str = "") -> dict[str, Any]:
    """Every single value of a recipe (as a dict), by the path that sets it."""
    parts = _parts(part)
    if not parts:
        return {path: part}
    entries = ((f"{path}.{name}" if path else name, entry) for name, entry in parts.items())
    return {leaf: value for name, entry in entries for leaf, value in leaves(entry, name).items()}


def _value(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise InputError(f"{constant} is not a number to train with", "use a finite number")

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
    """Lists instead of tuples, so that an entry can be set."""
    return json.loads(json.dumps(value))
