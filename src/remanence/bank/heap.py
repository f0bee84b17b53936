"""Gives memory that is free again back to the system, where the C library keeps it."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def trim() -> None:
    """After work that allocated much on many threads: glibc keeps what each of them freed (half a gigabyte here)."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
