"""A namespace as JSON lines and back: what anybody can read, and what a bank can be made from again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from remanence.bank import chunks
from remanence.bank.checksums import digest
from remanence.bank.context import BankContext
from remanence.bank.new_chunk import NewChunk, check_new_chunk, chunk_id
from remanence.errors import BankError, InputError
from remanence.files import replacing

FORMAT = 1
FIELDS = ("id", "text", "num_tokens", "source", "start", "end", "created", "expires", "supersedes", "metadata")
PLACE = ("format", "namespace", "line", "lines")
BATCH_ROWS = 1_000
Content = dict[str, Any]


def export(context: BankContext, path: Path) -> int:
    """See `Bank.export`. Writers wait meanwhile, so that the file is one moment of the bank."""
    with context.store.writing():
        try:
            with replacing(path) as file:
                count = _write(context, file)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise BankError(f"cannot write {str(path)!r}: {reason}", "give another path, or free space") from None
    return count


def _write(context: BankContext, file: BinaryIO) -> int:
    ids, line = chunks.live_ids(context), 0
    for part in chunks.iterate(context, ids):
        for chunk in part:
            line += 1
            place = {"format": FORMAT, "namespace": context.namespace, "line": line, "lines": len(ids)}
            content = place | {name: getattr(chunk, name) for name in FIELDS} | {"metadata": dict(chunk.metadata)}
            line_of_text = json.dumps(content | {"checksum": _checksum(content)}, ensure_ascii=False)
            file.write(line_of_text.encode() + b"\n")
    return line


def _checksum(content: Content) -> str:
    return digest(json.dumps([content[name] for name in PLACE + FIELDS], ensure_ascii=False, sort_keys=True))


def import_(context: BankContext, path: Path) -> list[tuple[str, bool]]:
    """See `Bank.import_`. The file is read once to check all of it, and again to add it.

    Batches of 1,000 chunks are one commit each; the same file given again goes on where it stopped.
    """
    ids = {content["id"]: chunk_id(context.namespace, content["text"]) for content in _read(path)}
    added: list[tuple[str, bool]] = []
    with context.store.writing():
        for batch in _batches(_read(path)):
            times = [content["created"] for content in batch]
            added += chunks.add(context, [_new_chunk(content) for content in batch], times)
        for batch in _batches(content for content in _read(path) if content["supersedes"] in ids):
            chunks.link(context, [(ids[content["id"]], ids[content["supersedes"]]) for content in batch])
    return added


def _batches(contents: Iterator[Content]) -> Iterator[list[Content]]:
    while batch := list(islice(contents, BATCH_ROWS)):
        yield batch


def _read(path: Path) -> Iterator[Content]:
    """Each line, checked; InputError names the first that is not what was written, or that is missing."""
    line = lines = 0
    try:
        with open(path, "rb") as file:
            for line, data in enumerate(file, start=1):
                content = _parse(path, line, data)
                lines = lines or content["lines"]
                if (content["line"], content["lines"]) != (line, lines):
                    raise InputError(f"line {line} of {str(path)!r} is in the wrong place", "export the bank again")
                yield content
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot read {str(path)!r}: {reason}", "give a file that was exported") from None
    if line != lines or not lines:
        raise InputError(f"{str(path)!r} ends after line {line} of {lines}", "export the bank again")


def _parse(path: Path, line: int, data: bytes) -> Content:
    try:
        content = json.loads(data)
        if not data.endswith(b"\n") or content["checksum"] != _checksum(content):
            raise ValueError("its checksum does not hold")
        if content["format"] != FORMAT:
            problem = f"line {line} of {str(path)!r} has format {content['format']}, this remanence reads {FORMAT}"
            raise InputError(problem, "use the remanence that wrote it, or a later one")
        _check_types(content)
        check_new_chunk(_new_chunk(content))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"line {line} of {str(path)!r} is damaged: {type(error).__name__}: {error}"
        raise InputError(problem, "nothing was imported; export the bank again") from None
    return content


def _check_types(content: Content) -> None:
    """A file that somebody made by hand may hold anything, with a checksum that fits."""
    texts = all(isinstance(content[name], str) for name in ("id", "text", "source"))
    if not (texts and isinstance(content["supersedes"], str | None) and isinstance(content["metadata"], dict)):
        raise ValueError("id, text and source are strings, supersedes is one or null, metadata is an object")
    if not math.isfinite(content["created"]):
        raise ValueError("created is not a number of seconds since 1970")


def _new_chunk(content: Content) -> NewChunk:
    names = ("text", "num_tokens", "source", "start", "end", "expires", "metadata")
    return NewChunk(**{name: content[name] for name in names})
