"""The word lists of the generator, and the hash that decides which words are held out."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from random import Random

HELDOUT_SHARE = 0.1


@cache
def words(section: str) -> tuple[str, ...]:
    """The entries of a section of `words.txt`. KeyError if there is no such section."""
    return _sections()[section]


@cache
def _sections() -> dict[str, tuple[str, ...]]:
    text = files("remanence.data").joinpath("words.txt").read_text(encoding="utf-8")
    sections = {}
    for line in text.splitlines():
        name, _, rest = line.removeprefix("[").partition("] ")
        separator = r" \| " if " | " in rest else r", " if ", " in rest else r" "
        sections[name] = tuple(dict.fromkeys(re.split(separator, rest.strip())))
    return sections


@cache
def is_heldout(text: str) -> bool:
    """Whether `text` (a name or a value) is held out: a tenth of all strings is, by SHA-256."""
    return hashlib.sha256(f"remanence:{text}".encode()).digest()[0] < 256 * HELDOUT_SHARE


def of_split(text: str, split: str) -> bool:
    """Whether `text` belongs to `split`: "heldout", or "train" and "practice", which training sees."""
    return is_heldout(text) == (split == "heldout")


@cache
def words_of(section: str, split: str) -> tuple[str, ...]:
    """The entries of a section that belong to a split; all entries if the split would be empty."""
    entries = tuple(word for word in words(section) if of_split(word, split))
    return entries or words(section)


def syllables(rng: Random, count: int) -> str:
    """An invented lower-case word of `count` syllables."""
    parts = [rng.choice(words("onset")) + rng.choice(words("vowel")) for _ in range(count)]
    return "".join(parts) + (rng.choice(words("coda")) if rng.random() < 0.6 else "")
