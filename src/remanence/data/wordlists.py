"""The word lists of the generator, and the hash that says which words training never sees."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from random import Random

HELDOUT_SHARE = 0.1


@cache
def words(section: str) -> tuple[str, ...]:
    """The entries of one section of `words.txt`; KeyError for a name that it does not have."""
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
    """Whether `text` (a name or a value) is kept for evaluation: a tenth of all strings, by SHA-256."""
    return hashlib.sha256(f"remanence:{text}".encode()).digest()[0] < 256 * HELDOUT_SHARE


def of_split(text: str, split: str) -> bool:
    """`split` is "heldout", or one of those that training may see: "train", "practice"."""
    return is_heldout(text) == (split == "heldout")


@cache
def words_of(section: str, split: str) -> tuple[str, ...]:
    """The entries of a section that belong to a split; all of them where the split would be empty."""
    kept = tuple(word for word in words(section) if of_split(word, split))
    return kept or words(section)


def syllables(rng: Random, count: int) -> str:
    """An invented lower-case word of `count` syllables."""
    parts = [rng.choice(words("onset")) + rng.choice(words("vowel")) for _ in range(count)]
    return "".join(parts) + (rng.choice(words("coda")) if rng.random() < 0.6 else "")
