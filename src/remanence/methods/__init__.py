"""Memory methods: the folder is the registry, and an unknown name is answered with the nearest known one."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

from remanence.errors import InputError, suggest
from remanence.lm.lm import LM
from remanence.methods.base import MemorySource, Method, Prompt, Reading

__all__ = ["MemorySource", "Method", "Prompt", "Reading", "known", "load"]


def known() -> dict[str, type[Method]]:
    """Every method in this folder by its name: one file each, or a package with its method in `method.py`."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}{'.method' if module.ispkg else ''}")
    return {cls.name: cls for cls in _subclasses(Method)}


def _subclasses(cls: type[Method]) -> list[type[Method]]:
    return [sub for child in cls.__subclasses__() for sub in (child, *_subclasses(child)) if hasattr(sub, "name")]


def load(name: str, lm: LM, preset: str | None = None) -> Method:
    """`name` may carry its preset: "memory3:dense". Without one: as the model's own settings say, else the first.

    Raises InputError for names that do not exist.
    """
    name, _, inline = name.partition(":")
    methods = known()
    cls = methods.get(name)
    if cls is None:
        raise InputError(f"no memory method {name!r}", suggest(name, sorted(methods)))
    preset = preset or inline
    if preset and preset not in cls.presets:
        raise InputError(f"method {name!r} has no preset {preset!r}", suggest(preset, sorted(cls.presets)))
    config = cls.presets[preset or next(iter(cls.presets))](lm)
    return cls(config if preset else _with_settings(config, name, lm))


def _with_settings(config: Any, name: str, lm: LM) -> Any:
    """What the checkpoint was made for, where it says so; lists become tuples, since configs are frozen."""
    settings = lm.settings.get(name, {})
    allowed = [field.name for field in dataclasses.fields(config)]
    if unknown := sorted(set(settings) - set(allowed)):
        hint = suggest(unknown[0], allowed)
        raise InputError(f"the settings of {lm.name} for {name} have an unknown field {unknown[0]!r}", hint)
    values = {field: tuple(value) if isinstance(value, list) else value for field, value in settings.items()}
    return dataclasses.replace(config, **values)
