"""The speed of the filter for references that a text repeats (Memory³ Eq. 6), beside the plain equation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from remanence.measurement import Advance, MeasurementOptions, envelope
from remanence.text.overlap import overlaps

VOCABULARY, COPIED = 8192, 0.5


@dataclass(frozen=True)
class Options(MeasurementOptions):
    """The filter gets `pairs` pairs at once, the equation the first `plain_pairs`. Times are medians of `repeats`."""

    pairs: int = 512
    plain_pairs: int = 2
    text_tokens: int = 2048
    reference_tokens: int = 128
    repeats: int = 3


def run(options: Options, advance: Advance) -> dict[str, Any]:
    """The envelope with pairs per second of both. AssertionError if their results differ."""
    rng = Random(options.seed)
    pairs = [_pair(rng, options) for _ in range(options.pairs)]
    few = pairs[: options.plain_pairs]
    seconds, fast = [], np.zeros(0)
    for _ in range(options.repeats):
        start = time.monotonic()
        fast = overlaps(pairs)
        seconds.append(time.monotonic() - start)
        advance(1)
    start = time.monotonic()
    slow = [by_windows(*pair) for pair in few]
    plain_speed = len(few) / (time.monotonic() - start)
    assert np.allclose(fast[: len(few)], slow), "the filter differs from the equation"
    speed = len(pairs) / statistics.median(seconds)
    systems = {"filter": {"pairs_per_second": speed}, "by_windows": {"pairs_per_second": plain_speed}}
    conditions = {"pairs": len(pairs), "text_tokens": options.text_tokens, "reference_tokens": options.reference_tokens}
    ratios = {"filter_to_by_windows": speed / plain_speed}
    return envelope("bench", "overlap", systems, conditions=conditions, ratios=ratios)


def _pair(rng: Random, options: Options) -> tuple[list[int], list[int]]:
    """(text, reference): the text contains about half of the reference, as near duplicates do."""
    sizes = (options.text_tokens, options.reference_tokens)
    text, reference = ([rng.randrange(VOCABULARY) for _ in range(size)] for size in sizes)
    copied = [token for token in reference if rng.random() < COPIED]
    at = rng.randrange(max(1, len(text) - len(copied)))
    return [*text[:at], *copied, *text[at + len(copied) :]], reference


def by_windows(text: Sequence[int], reference: Sequence[int]) -> float:
    """Memory³ Eq. 6 as it is written: a longest common subsequence per window, for all windows at once."""
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
