"""The start of a command: the garbage collector is off during imports, where it takes an eighth of the time."""

from __future__ import annotations

import gc


def begin() -> None:
    """Called by `main` alone, in a process of its own: imports make many objects, and hardly any garbage."""
    gc.disable()


def loaded() -> None:
    """Turns the collector on again, and excludes what is loaded so far. Does nothing without `begin`."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def end() -> None:
    """Called right before the process ends: Python need not search all objects for garbage once more."""
    gc.freeze()
