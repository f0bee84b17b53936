"""Checks of what people pass to the Python API: the value in its own type, or one line on what is allowed."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from remanence.errors import InputError

SHOWN_CHARS = 80
LAST_SECOND = 253_402_300_800.0
"""The year 10000, in seconds since 1970: larger numbers are milliseconds or nanoseconds by mistake."""


def shown(value: object) -> str:
    """A short description of any value for an error message, with its type where that is not clear."""
    try:
        text = repr(value)
    except Exception:
        text = "<no repr>"
    text = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
    if value is None or isinstance(value, str | bool | int | float):
        return text
    return f"{text} (a {type(value).__name__})"


def is_flag(value: object) -> bool:
    """Whether a value is a bool, one of NumPy included."""
    return isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b"


def flag(name: str, value: Any) -> bool:
    """True or False. Raises InputError for everything else, "false" and 0 too."""
    if is_flag(value) and getattr(value, "ndim", 0) == 0:
        return bool(value)
    raise InputError(f"{name} is {shown(value)}", "use True or False")


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number from `least` to `most`; integers of NumPy become int. Raises InputError, also for a bool."""
    allowed = f"use a whole number of {least} or more" if most is None else f"use a whole number from {least} to {most}"
    try:
        number = None if is_flag(value) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        raise InputError(f"{name} is {shown(value)}", allowed)
    return number


def real(name: str, value: Any, hint: str) -> float:
    """A finite number as float. Raises InputError for NaN, infinity, a bool, a string and everything else."""
    number = math.nan
    if isinstance(value, numbers.Real | Decimal) and not is_flag(value):
        try:
            number = float(value)
        except (OverflowError, ValueError):
            number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{name} is {shown(value)}", hint)
    return number


def seed(name: str, value: Any) -> int:
    """A seed that torch takes, as int."""
    return whole(name, value, -(2**63), 2**64 - 1)


def string(name: str, value: Any, hint: str = "give a str") -> str:
    """A str, an instance of a subclass (of NumPy, say) as the plain one."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        hint = "decode it first, for example with `.decode('utf-8')`"
    raise InputError(f"{name} is {shown(value)}", hint)


def strings(name: str, value: Any) -> tuple[str, ...]:
    """None: (); a str: that one; an iterable of str: all of them. Raises InputError for everything else."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (str.__str__(value),)
    hint = "give a str, or a list of them"
    items = each(value)
    if items is None:
        raise InputError(f"{name} is {shown(value)}", hint)
    return tuple(string(f"one of {name}", item, hint) for item in items)


def each(value: Any) -> Iterator[Any] | None:
    """An iterator over a list, a tuple, a generator and their like; None for a str, bytes, a mapping, a scalar."""
    if isinstance(value, str | bytes | bytearray | Mapping):
        return None
    try:
        return iter(value)
    except TypeError:  # an array without a dimension has __iter__ too
        return None


def folder(name: str, value: Any) -> Path:
    """A path from a str or os.PathLike, with `~` expanded. Raises InputError for "" and everything else."""
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{name} is {shown(value)}", "give the path of a folder, as str or Path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{name} is {shown(value)}, and there is no such home folder", "give the whole path") from None


def name_or_path(name: str, value: Any) -> str:
    """A str or os.PathLike as str; "" is refused."""
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{name} is {shown(value)}", "give a name or a path, as str or Path")
    return text


def expiry(name: str, value: Any, now: float) -> float | None:
    """A time that is still to come, in seconds since 1970 (UTC); None: never.

    `value`: such seconds, a datetime (a naive one is local time), a date (its midnight, local), or a timedelta from
    `now`. Raises InputError for a time that has passed and for everything else.
    """
    hint = "give seconds since 1970, a datetime, or a timedelta from now; None for never"
    if value is None:
        return None
    try:
        if isinstance(value, timedelta):
            seconds = now + value.total_seconds()
        elif isinstance(value, datetime):
            seconds = value.timestamp()
        elif isinstance(value, date):
            seconds = datetime.combine(value, time()).timestamp()
        else:
            seconds = real(name, value, hint)
    except (OverflowError, ValueError, OSError):
        raise InputError(f"{name} is {shown(value)}, which is no time of this system", hint) from None
    if not now < seconds:
        raise InputError(f"{name} is {shown(value)}, which is in the past", f"{hint}, and a time that is still to come")
    if seconds >= LAST_SECOND:
        raise InputError(f"{name} is {shown(value)}, after the year 9999", "give seconds, not milliseconds")
    return seconds
