"""Memory methods by name: those of this folder, and those that other packages register as entry points."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import warnings
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from remanence.errors import InputError, suggest
from remanence.methods.base import MemorySource, Method, MethodState, Prompt, Reading

if TYPE_CHECKING:
    from remanence.lm.lm import LM

__all__ = ["MemorySource", "Method", "MethodState", "Prompt", "Reading", "known", "load"]

ENTRY_POINTS = "remanence.methods"
"""The group of entry points: `name = "package.module:Class"`, where the class has the same `name`."""


def known() -> dict[str, type[Method]]:
    """Every method by its name. One warning for each entry point that cannot be used; it costs no other method."""
    methods = dict(_own())
    for point in _plugins():
        try:
            if point.name in methods:
                raise InputError(f"there is a method {point.name!r} already", "give it another name")
            methods[point.name] = _load_plugin(point)
        except InputError as error:
            warnings.warn(str(_unusable(point, error)), stacklevel=2)
    return methods


def load(name: str, lm: LM, preset: str | None = None) -> Method:
    """The method `name` with its config for `lm`. `name` may carry the preset: "memory3:dense".

    Without a preset: as the model's own settings (`remanence.json`) say, else the first preset. A method of another
    package is found by an entry point of the group `remanence.methods`. Raises InputError for a name that does not
    exist, and for an entry point that cannot be used.
    """
    if not isinstance(name, str):
        raise InputError(f"method is {name!r}", 'give a name such as "memory3", or a Method')
    name, _, inline = name.partition(":")
    cls = _find(name)
    preset = preset or inline
    if preset and preset not in cls.presets:
        raise InputError(f"method {name!r} has no preset {preset!r}", suggest(preset, sorted(cls.presets)))
    config = cls.presets[preset or next(iter(cls.presets))](lm)
    return cls(config if preset else _with_settings(config, name, lm))


def _find(name: str) -> type[Method]:
    """The class of one method; no module of another method is imported for it."""
    modules = _modules()
    if name in modules and (cls := _defined_in(modules[name]).get(name)):
        return cls
    own = _own()
    if name in own:
        return own[name]
    points = _plugins()
    for point in points:
        if point.name == name:
            try:
                return _load_plugin(point)
            except InputError as error:
                raise _unusable(point, error) from error
    raise InputError(f"no memory method {name!r}", suggest(name, sorted({*own, *(point.name for point in points)})))


def _modules() -> dict[str, str]:
    """Modules of this folder by the name of their file, or of their package, which has its method in `method.py`."""
    return {
        module.name: f"{__name__}.{module.name}{'.method' if module.ispkg else ''}"
        for module in pkgutil.iter_modules(__path__)
    }


def _own() -> dict[str, type[Method]]:
    return {name: cls for module in _modules().values() for name, cls in _defined_in(module).items()}


def _defined_in(module: str) -> dict[str, type[Method]]:
    values = vars(importlib.import_module(module)).values()
    return {cls.name: cls for cls in values if _is_method(cls) and cls.__module__ == module}


def _is_method(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and isinstance(getattr(value, "name", None), str)


def _plugins() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value))


def _load_plugin(point: EntryPoint) -> type[Method]:
    """Raises InputError with the reason, whatever the other package does when it is imported."""
    try:
        cls = point.load()
    except (Exception, SystemExit) as error:
        raise InputError(f"{type(error).__name__}: {error}", "update or remove that package") from error
    if not _is_method(cls) or getattr(cls, "__abstractmethods__", None) or not getattr(cls, "presets", None):
        hint = "a method is a subclass of remanence.methods.Method with `name`, `presets` and `read`"
        raise InputError("it is no method", hint)
    if cls.name != point.name:
        raise InputError(f"the class calls itself {cls.name!r}", "the entry point must have the same name")
    return cls


def _unusable(point: EntryPoint, error: InputError) -> InputError:
    package = f" of {point.dist.name}" if point.dist else ""
    return InputError(f"method {point.name!r}{package} ({point.value}) cannot be used: {error.message}", error.hint)


def _with_settings(config: Any, name: str, lm: LM) -> Any:
    """`config` with the values that the model folder sets; lists become tuples, since configs are frozen."""
    settings = lm.settings.get(name, {})
    allowed = [field.name for field in dataclasses.fields(config)]
    if unknown := sorted(set(settings) - set(allowed)):
        hint = suggest(unknown[0], allowed)
        raise InputError(f"the settings of {lm.name} for {name} have an unknown field {unknown[0]!r}", hint)
    values = {field: tuple(value) if isinstance(value, list) else value for field, value in settings.items()}
    return dataclasses.replace(config, **values)
