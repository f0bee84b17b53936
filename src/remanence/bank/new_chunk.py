"""A text on its way into a bank, and the id that its content gives it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from remanence.errors import InputError, UnknownChunk

ID = re.compile(r"[0-9a-f]{16}")
UNSTORABLE = re.compile(r"[\0\ud800-\udfff]")
MAX_NAMESPACE_CHARS = 256
MAX_TOKENS, MAX_CHARS = 2**31 - 1, 2**63 - 1
"""What the columns of a count and of a position hold."""


@dataclass(frozen=True)
class NewChunk:
    """A chunk before it is stored. `start` and `end` are characters of the document `source`.

    `expires`: seconds since 1970 (UTC), None: never. `supersedes`: the id of an older chunk of the
    same namespace that this one replaces in every search.
    """

    text: str
    num_tokens: int
    source: str = ""
    start: int = 0
    end: int = 0
    expires: float | None = None
    supersedes: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def content_hash(namespace: str, text: str) -> str:
    """64 hex digits: SHA-256 over namespace, a zero byte, and text."""
    return hashlib.sha256(f"{namespace}\0{text}".encode()).hexdigest()


def chunk_id(namespace: str, text: str) -> str:
    """The first 16 hex digits of the content's hash."""
    return content_hash(namespace, text)[:16]


def check_new_chunk(chunk: NewChunk) -> None:
    """InputError where the chunk could not be stored and read back unchanged."""
    if not chunk.text.strip():
        raise InputError(f"a chunk's text is {chunk.text!r}", "give a text with at least one word")
    for name in ("text", "source"):
        if bad := UNSTORABLE.search(getattr(chunk, name)):
            problem = f"a chunk's {name} has the character U+{ord(bad[0]):04X} at {bad.start()}"
            raise InputError(problem, "remove it: it is half of a broken character, or the text is a binary file")
    counts = (chunk.num_tokens, chunk.start, chunk.end)
    if not (all(type(count) is int for count in counts) and _fits(*counts)):
        span = f"num_tokens={chunk.num_tokens!r}, start={chunk.start!r}, end={chunk.end!r}"
        raise InputError(f"a chunk has {span}", "use whole numbers of at least 0, and an end that is not before start")
    if chunk.expires is not None and not math.isfinite(chunk.expires):
        raise InputError(f"a chunk's expires is {chunk.expires}", "give seconds since 1970, or None for never")
    if not all(isinstance(value, str) for pair in chunk.metadata.items() for value in pair):
        raise InputError(f"a chunk's metadata is {dict(chunk.metadata)!r}", "use strings as names and values")
    if any(UNSTORABLE.search(value) for pair in chunk.metadata.items() for value in pair):
        raise InputError("a chunk's metadata has a NUL or half of a broken character", "remove it")


def _fits(num_tokens: int, start: int, end: int) -> bool:
    return 0 <= num_tokens <= MAX_TOKENS and 0 <= start <= end <= MAX_CHARS


def check_namespace(namespace: str) -> str:
    """`namespace` itself: 1 to 256 printable characters."""
    if 0 < len(namespace) <= MAX_NAMESPACE_CHARS and namespace.isprintable():
        return namespace
    raise InputError(f"namespace is {namespace[:80]!r}", f"use 1 to {MAX_NAMESPACE_CHARS} printable characters")


def check_ids(ids: list[str]) -> list[str]:
    """`ids` without repetition; UnknownChunk names the first that cannot be an id at all."""
    for id in ids:
        if not ID.fullmatch(id):
            raise UnknownChunk(f"no chunk {id[:80]!r}", "an id is 16 hex digits, as `remanence bank list` prints it")
    return list(dict.fromkeys(ids))
