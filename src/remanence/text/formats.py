"""One reader per file format: bytes of one file in, documents out."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from remanence.errors import InputError, MissingExtra, RemanenceError
from remanence.text.decode import check_text, decode, newlines
from remanence.text.html import declared_encoding, visible_text

MAX_DOCUMENT_BYTES = 64 << 20
"""Of one text, html or pdf file. JSONL is read line by line and may be of any size."""
MAX_LINE_BYTES = 8 << 20
"""Of one line of a JSONL file."""
MAX_BAD_LINES = 10
"""So many bad lines of one JSONL file are reported one by one, the others as a number."""


@dataclass(frozen=True)
class Document:
    """A text to remember, with `\\n` line ends, and where it came from."""

    text: str
    source: str
    metadata: Mapping[str, str] = field(default_factory=dict)


Item = Document | RemanenceError
"""What a reader yields: a bad line or page does not lose the others."""


def read_text(file: BinaryIO, name: str) -> Iterator[Item]:
    yield Document(check_text(decode(_all(file, name), name), name), name)


def read_html(file: BinaryIO, name: str) -> Iterator[Item]:
    data = _all(file, name)
    text, title = visible_text(decode(data, name, declared_encoding(data)))
    yield Document(check_text(text, name), name, {"title": title} if title else {})


def read_pdf(file: BinaryIO, name: str) -> Iterator[Item]:
    """One document a page, so that an answer can say which page it is from."""
    try:
        import pypdf
        from pypdf.errors import PyPdfError
    except ImportError:
        raise MissingExtra("pypdf", "pdf", f"reading {name!r}") from None
    _all(file, name)
    file.seek(0)
    found = False
    try:
        for number, page in enumerate(pypdf.PdfReader(file).pages, start=1):
            text = page.extract_text().replace("\x00", "")
            if text.strip():
                found = True
                yield Document(check_text(text, f"{name}#page={number}"), f"{name}#page={number}")
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # pypdf lets these through for damaged files
        yield InputError(f"{name!r} cannot be read as PDF: {error}", "open it and save it again, without a password")
        return
    if not found:
        yield InputError(f"{name!r} has no text, perhaps only scanned pages", "run OCR on it first, e.g. `ocrmypdf`")


def read_jsonl(file: BinaryIO, name: str) -> Iterator[Item]:
    """One document a line: {"text": ..., "source": ...}; all other values become metadata."""
    bad = found = number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        try:
            if len(line) > MAX_LINE_BYTES:
                _skip_line(file, line)
                raise InputError(f"longer than {MAX_LINE_BYTES >> 20} MiB", "split the text over several lines")
            document = _json_line(line, f"{name}:{number}", first=number == 1)
        except InputError as error:
            bad += 1
            if bad <= MAX_BAD_LINES:
                yield InputError(f"line {number} of {name!r} cannot be used: {error.message}", error.hint)
            continue
        if document:
            found += 1
            yield document
    if bad > MAX_BAD_LINES:
        yield InputError(f"{bad - MAX_BAD_LINES} more lines of {name!r} cannot be used", "is it a JSONL file?")
    if not (bad or found):
        yield InputError(f"{name!r} is empty", 'give one {"text": "..."} per line')


def _json_line(line: bytes, where: str, first: bool) -> Document | None:
    text = decode(line, where) if first else _utf8(line, where)
    if not text.strip():
        return None
    way_out = 'each line must be an object like {"text": "...", "source": "..."}'
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"broken JSON, {error}", way_out) from None
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise InputError('no "text" that is a string', way_out)
    check_text(fields["text"], where)
    source = fields.get("source")
    source = source if isinstance(source, str) and source else where
    return Document(newlines(fields["text"]), check_text(source, where), _metadata(fields, where))


def _metadata(fields: dict[str, object], where: str) -> dict[str, str]:
    inner = fields.get("metadata")
    pairs = {key: value for key, value in fields.items() if key not in ("text", "source", "metadata")}
    pairs |= inner if isinstance(inner, dict) else {}
    flat = {key: value if isinstance(value, str) else json.dumps(value) for key, value in pairs.items()}
    for key, value in flat.items():
        if key + value:
            check_text(f"{key}={value}", f"{where} {key}"[:80])
    return flat


def _utf8(line: bytes, where: str) -> str:
    return decode(line.removeprefix(codecs.BOM_UTF8), where)


def _skip_line(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)


def _all(file: BinaryIO, name: str) -> bytes:
    data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InputError(
            f"{name!r} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB, the limit for one document",
            "split it, or write it as .jsonl with one document a line: such files may be of any size",
        )
    return data
