"""Reads questions in SQuAD format: the official nesting, or a flat list of contexts."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remanence.errors import InputError


@dataclass(frozen=True)
class Context:
    """A passage and its (question, answers) pairs. Questions without an answer are only counted."""

    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]
    num_unanswerable: int = 0


def read_squad(path: Path | str) -> list[Context]:
    """The contexts of a `.json` or `.json.gz` file, without questions that have no answer.

    Accepts `{"data": [{"paragraphs": [{"context", "qas"}]}]}` (SQuAD 1.1 and 2.0) and `[{"context", "qas"}]`.
    InputError if the file is missing or has neither form.
    """
    try:
        raw = Path(path).read_bytes()
        document = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        records = document if isinstance(document, list) else [p for d in document["data"] for p in d["paragraphs"]]
        return [_context(record) for record in records]
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}", "give a SQuAD file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is not in SQuAD format ({error})", 'expected {"data": [...]}') from error


def _context(record: dict[str, Any]) -> Context:
    pairs = [(qa["question"].strip(), _answers(qa)) for qa in record["qas"]]
    answered = tuple((question, answers) for question, answers in pairs if answers)
    return Context(record["context"].strip(), answered, len(pairs) - len(answered))


def _answers(qa: dict[str, Any]) -> tuple[str, ...]:
    if "answer" in qa:
        return (qa["answer"],)
    return tuple(dict.fromkeys(answer["text"] for answer in qa.get("answers", ())))
