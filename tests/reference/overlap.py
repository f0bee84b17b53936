"""Memory³ Eq. 6 as it is written: the longest common subsequence of a reference and every stretch of a text."""

from __future__ import annotations

from collections.abc import Sequence


def overlap(text: Sequence[int], reference: Sequence[int]) -> float:
    if not text or not reference:
        return 0.0
    stretches = (text[i : i + 2 * len(reference) + 1] for i in range(len(text)))
    return max(_lcs(stretch, reference) for stretch in stretches) / len(reference)


def _lcs(one: Sequence[int], other: Sequence[int]) -> int:
    lengths = [0] * (len(other) + 1)
    for a in one:
        diagonal = 0
        for j, b in enumerate(other, 1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if a == b else max(lengths[j], lengths[j - 1])
    return lengths[-1]
