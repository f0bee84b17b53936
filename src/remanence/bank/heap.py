"""Keeps the C library from holding on to free memory: with Lance's many threads that is half a gigabyte."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

M_ARENA_MAX, NUM_ARENAS = -8, 4


def limit_arenas() -> None:
    """Before Lance starts its threads: they share a few heaps instead of having eight for each core."""
    _call("mallopt", M_ARENA_MAX, NUM_ARENAS)


def trim() -> None:
    """After work that allocated much: gives what is free back to the system."""
    _call("malloc_trim", 0)


def _call(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library without it
            getattr(ctypes.CDLL(None), function)(*arguments)
