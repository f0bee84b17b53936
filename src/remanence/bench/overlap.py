"""How fast references that a text repeats are found: the filter beside the equation, window by window."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from remanence.bench.report import result
from remanence.errors import InputError
from remanence.text.overlap import overlaps

VOCABULARY, COPIED = 8192, 0.5


@dataclass(frozen=True)
class Options:
    """`pairs` at once to the filter, `plain_pairs` of them to the equation; times are medians of `repeats`."""

    pairs: int = 512
    plain_pairs: int = 2
    text_tokens: int = 2048
    reference_tokens: int = 128
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.pairs, self.text_tokens, self.reference_tokens, self.repeats) < 1:
            raise InputError("pairs, tokens and repeats count from 1", "use 1 or more")


def run(options: Options, advance: Callable[[int], None]) -> dict[str, Any]:
    """Pairs a second of both, which must agree."""
    rng = Random(options.seed)
    pairs = [_pair(rng, options) for _ in range(options.pairs)]
    few = pairs[: options.plain_pairs]
    seconds = []
    for _ in range(options.repeats):
        begun = time.monotonic()
        found = overlaps(pairs)
        seconds.append(time.monotonic() - begun)
        advance(1)
    begun = time.monotonic()
    slow = [by_windows(*pair) for pair in few]
    plain_speed = len(few) / (time.monotonic() - begun)
    assert np.allclose(found[: len(few)], slow), "the filter differs from the equation"
    speed = len(pairs) / statistics.median(seconds)
    results = {"filter": {"pairs_per_second": speed}, "by_windows": {"pairs_per_second": plain_speed}}
    conditions = {"pairs": len(pairs), "text_tokens": options.text_tokens, "reference_tokens": options.reference_tokens}
    return result("overlap", results, {"filter_to_by_windows": speed / plain_speed}, **conditions)


def _pair(rng: Random, options: Options) -> tuple[list[int], list[int]]:
    """A text with a part of the reference in it, as near duplicates have."""
    sizes = (options.text_tokens, options.reference_tokens)
    text, reference = ([rng.randrange(VOCABULARY) for _ in range(size)] for size in sizes)
    copied = [token for token in reference if rng.random() < COPIED]
    at = rng.randrange(max(1, len(text) - len(copied)))
    return [*text[:at], *copied, *text[at + len(copied) :]], reference


def by_windows(text: Sequence[int], reference: Sequence[int]) -> float:
    """Memory³ Eq. 6 as it is written: a longest common subsequence for each window, all windows side by side."""
    width, M = 2 * len(reference) + 1, len(reference)
    padded = np.concatenate([np.asarray(text), np.full(width, -1)])
    window_WT = np.lib.stride_tricks.sliding_window_view(padded, width)[: len(text)]
    length_JW = np.zeros((M + 1, len(text)), dtype=np.int32)
    for t in range(width):
        before_W = np.zeros(len(text), dtype=np.int32)
        for j, token in enumerate(reference, 1):
            same_W, old_W = window_WT[:, t] == token, length_JW[j].copy()
            length_JW[j] = np.where(same_W, before_W + 1, np.maximum(length_JW[j], length_JW[j - 1]))
            before_W = old_W
    return float(length_JW[M].max()) / M
