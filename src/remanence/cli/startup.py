"""The first moments of a command: imports without the garbage collector, which would take an eighth of the time."""

from __future__ import annotations

import gc


def begin() -> None:
    """Called by `main` alone, in a process of its own: imports make many objects, and hardly any garbage."""
    gc.disable()


def loaded() -> None:
    """What is loaded stays until the end; from now on garbage is collected. Does nothing without `begin`."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def end() -> None:
    """The process ends now: nothing has to be searched for garbage once more."""
    gc.freeze()
