"""Documents from files, folders and standard input; what cannot be read is reported, the rest goes on."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from remanence.errors import InputError, RemanenceError
from remanence.text.formats import Document, Item, read_html, read_jsonl, read_pdf, read_text

__all__ = ["READERS", "Document", "Problem", "read_documents"]

Reader = Callable[[BinaryIO, str], Iterator[Item]]
READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".text": read_text,
    ".md": read_text,
    ".markdown": read_text,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".pdf": read_pdf,
}


@dataclass(frozen=True)
class Problem:
    """Something that was not read. `failed`: it should have been; else it was passed over on purpose."""

    path: str
    error: RemanenceError
    failed: bool


Found = Document | Problem


def read_documents(
    paths: Iterable[str | os.PathLike[str]],
    stdin: bool = False,
    on_problem: Callable[[Problem], None] | None = None,
) -> Iterator[Document]:
    """Every document that can be read, in order; folders recursively, sorted, without hidden files.

    One bad file never loses the others. With `on_problem` each problem is handed over as it is met;
    without it, InputError is raised after the last document if anything failed.
    A file that is named is read whatever its extension (as plain text if unknown); in a folder
    unknown extensions are passed over. `-` is standard input.
    """
    failures: list[RemanenceError] = []
    for found in _walk(paths, stdin):
        if isinstance(found, Document):
            yield found
        elif on_problem:
            on_problem(found)
        elif found.failed:
            failures.append(found.error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        first = failures[0]
        raise InputError(f"{len(failures)} inputs cannot be used, the first: {first.message}", first.hint)


def _walk(paths: Iterable[str | os.PathLike[str]], stdin: bool) -> Iterator[Found]:
    if stdin:
        yield from _read_stream(sys.stdin.buffer, "stdin", read_text)
    for path in paths:
        if os.fspath(path) == "-":
            yield from _read_stream(sys.stdin.buffer, "stdin", read_text)
        elif os.path.isdir(path):
            yield from _read_folder(Path(path), os.path.realpath(path))
        else:
            yield from _read_file(Path(path))


def _read_folder(folder: Path, root: str) -> Iterator[Found]:
    """Depth first in sorted order; no link leads out of `root`, nor to a folder, so that there are no cycles."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        yield Problem(_shown(folder), _unreadable(folder, error), failed=True)
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _read_folder(path, root)
        elif reason := _passed_over(path, root):
            yield Problem(_shown(path), InputError(f"{_shown(path)!r} is passed over: {reason}"), failed=False)
        else:
            yield from _read_file(path)


def _passed_over(path: Path, root: str) -> str:
    if os.path.isdir(path):  # not Path's own, which raises where the folder may be listed but not entered
        return "a link to a folder"
    if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(root):
        return "a link that leads out of the folder; name it to read it"
    if path.suffix.lower() not in READERS:
        return f"unknown extension {path.suffix!r} (known: {' '.join(READERS)})"
    return "" if os.path.isfile(path) or not os.path.exists(path) else "not a regular file"


def _read_file(path: Path) -> Iterator[Found]:
    name = _shown(path)
    reader = READERS.get(path.suffix.lower(), read_text)
    try:
        with path.open("rb") as file:
            if reader is read_pdf and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{name!r} is not a regular file", "save the PDF to disk first")
            yield from _read_stream(file, name, reader)
    except RemanenceError as error:
        yield Problem(name, error, failed=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        yield Problem(name, _unreadable(path, error), failed=True)


def _read_stream(file: BinaryIO, name: str, reader: Reader) -> Iterator[Found]:
    items = reader(file, name)
    while True:
        try:
            item = next(items, None)
        except RemanenceError as error:
            yield Problem(name, error, failed=True)
            return
        except OSError as error:
            yield Problem(name, _unreadable(Path(name), error), failed=True)
            return
        if item is None:
            return
        yield item if isinstance(item, Document) else Problem(name, item, failed=True)


def _unreadable(path: Path, error: Exception) -> InputError:
    name = _shown(path)
    if isinstance(error, FileNotFoundError):
        return InputError(f"{name!r} does not exist", "check the path; it is relative to the folder you are in")
    if isinstance(error, PermissionError):
        return InputError(
            f"no permission to read {name!r}", f"`chmod u+r {shlex.quote(name)}` (for a folder u+rx), or leave it out"
        )
    return InputError(f"{name!r} cannot be read: {error}", "check the path and the disk")


def _shown(path: Path) -> str:
    """The path as text that can be stored and printed, whatever bytes the file system holds."""
    return os.fsencode(path).decode("utf-8", errors="replace")
