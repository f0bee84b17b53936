"""Reads books (JSON lines with a text) and cuts them into paragraphs."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

from remanence.errors import InputError


def read_books(path: Path | str) -> Iterator[str]:
    """The `text` of every record of a `.jsonl` or `.jsonl.gz` file. InputError names a line that has none."""
    try:
        raw = Path(path).read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read books from {str(path)!r}: {error}", "give a JSONL file") from error
    for number, line in ((n, text) for n, text in enumerate(lines, 1) if text.strip()):
        try:
            yield json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} line {number} has no text", 'each line: {"text": "..."}') from error


def paragraphs(text: str, min_chars: int = 80) -> Iterator[str]:
    """Paragraphs in one line each, without markup; shorter ones are dropped."""
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        line = re.sub(r"\s+", " ", re.sub(r"[_*#>|\\]", "", block)).strip()
        if len(line) >= min_chars:
            yield line
