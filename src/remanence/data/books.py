"""Reads books (JSON lines with a "text") and splits them into paragraphs."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from remanence.errors import InputError

HINT = 'each line is {"text": "..."}; of a damaged file: get it again, or leave such lines out (--damaged skip)'


def read_books(path: Path | str, damaged: list[str] | None = None) -> Iterator[str]:
    """The `text` of every record of a `.jsonl` or `.jsonl.gz` file.

    InputError names a line that has none, or where a file breaks off; with `damaged` that is put there instead, and
    what can be read is read.
    """
    number = 0
    try:
        with (gzip.open if _is_gzip(path) else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield from _text(path, number, line, damaged)
    except (OSError, EOFError, zlib.error) as error:
        if damaged is None or number == 0:
            problem = f"cannot read books from {str(path)!r} after line {number}: {error}"
            raise InputError(problem, "give a whole JSONL file, or have damaged ones skipped") from error
        damaged.append(f"{path} breaks off after line {number}")


def _is_gzip(path: Path | str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _text(path: Path | str, number: int, line: bytes, damaged: list[str] | None) -> Iterator[str]:
    try:
        text = json.loads(line.decode("utf-8"))["text"]
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is no text")
    except (ValueError, KeyError, TypeError) as error:
        if damaged is None:
            raise InputError(f"{str(path)!r} line {number} has no text", HINT) from error
        damaged.append(f"{path} line {number} has no text")
        return
    yield text


def paragraphs(text: str, min_chars: int = 80) -> Iterator[str]:
    """The paragraphs, each as one line, without markup. Short paragraphs are left out."""
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        line = re.sub(r"\s+", " ", re.sub(r"[_*#>|\\]", "", block)).strip()
        if len(line) >= min_chars:
            yield line
