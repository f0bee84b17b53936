"""How much of a reference stands in a text, word by word in order: what keeps a model from copying (Memory³ Eq. 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from remanence.errors import InputError

PAIRS, CELLS = 256, 2**20
"""Compared at once: so many pairs at most, and so many tokens of texts, padded."""
Ids = Sequence[int] | NDArray[np.int32]


def overlaps(pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """Of each (text, reference), in token ids: the longest common subsequence over the reference's length, 0 to 1.

    Only within a stretch of the text of at most 2 |r| + 1 tokens (the first and last common token are at most 2 |r|
    apart). The paper leaves out references above 0.9 in training (§3.6) and above 2/3 in evaluation (§4.4). Exact, for
    all stretches at once, in |t| + |r| steps over arrays: semi-local comparison by iterative combing (A. Tiskin).
    An empty text or reference overlaps 0. Raises InputError for an id below 0.
    """
    if any(min(ids, default=0) < 0 for pair in pairs for ids in pair):
        raise InputError("a token id is below 0", "give ids of a vocabulary")
    found = np.zeros(len(pairs))
    for part in _batches(pairs):
        found[part] = _longest([pairs[i] for i in part]) / [len(pairs[i][1]) for i in part]
    return found.tolist()


def exceed(pairs: Sequence[tuple[Ids, Ids]], limit: float) -> list[bool]:
    """Whether each of `overlaps` is above `limit`; most pairs are told by counting the tokens that they share."""
    close = [i for i, (text, reference) in enumerate(pairs) if _shared(text, reference) > limit * len(reference)]
    found = [False] * len(pairs)
    for i, overlap in zip(close, overlaps([pairs[i] for i in close]), strict=True):
        found[i] = overlap > limit
    return found


def _shared(text: Ids, reference: Ids) -> int:
    """Tokens of the reference that the text has too, in any order and as often: no common subsequence is longer."""
    id_N, times_N = np.unique(np.asarray(reference), return_counts=True)
    text_T = np.sort(np.asarray(text))
    there_N = np.searchsorted(text_T, id_N, "right") - np.searchsorted(text_T, id_N, "left")
    return int(np.minimum(times_N, there_N).sum())


def _batches(pairs: Sequence[tuple[Ids, Ids]]) -> Iterator[list[int]]:
    """Places of pairs that are compared together, alike lengths beside each other; none with an empty side."""
    real = [i for i, (text, reference) in enumerate(pairs) if len(text) and len(reference)]
    part: list[int] = []
    for i in sorted(real, key=lambda i: (len(pairs[i][0]), len(pairs[i][1]))):
        if len(part) == PAIRS or (part and (len(part) + 1) * len(pairs[i][0]) > CELLS):
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _longest(pairs: Sequence[tuple[Ids, Ids]]) -> NDArray[np.int64]:
    text_TP, reference_MP = (_padded([pair[side] for pair in pairs], fill) for side, fill in ((0, -1), (1, -2)))
    begun_TP = _combed(text_TP, reference_MP) - len(reference_MP)
    width_P = np.minimum(2 * np.array([len(reference) for _, reference in pairs]) + 1, len(text_TP))
    return width_P - _fewest_unmatched(begun_TP, width_P)


def _padded(rows: Sequence[Ids], fill: int) -> NDArray[np.int32]:
    """[tokens, pairs]; what fills up is in no text."""
    made = np.full((max(map(len, rows)), len(rows)), fill, dtype=np.int32)
    for p, row in enumerate(rows):
        made[: len(row), p] = row
    return made


def _combed(text_TP: NDArray[np.int32], reference_MP: NDArray[np.int32]) -> NDArray[np.int64]:
    """Which strand leaves the grid below each token of the text; strands are counted along its left and upper side.

    A strand enters at every row (0 … M - 1, from below) and column (M …). Two that meet in a cell swap where the tokens
    are equal, and where they have crossed before. Cells of one diagonal do not touch: a diagonal is one step.
    """
    T, M = len(text_TP), len(reference_MP)
    number = np.arange(M + T, dtype=np.int16 if M + T < 2**15 else np.int32)
    row_MP = np.repeat(number[:M, None], text_TP.shape[1], axis=1)
    column_TP = np.repeat(number[M:, None], text_TP.shape[1], axis=1)
    from_below_MP = np.ascontiguousarray(reference_MP[::-1])
    for diagonal in range(M + T - 1):
        first, last = max(0, diagonal - T + 1), min(M - 1, diagonal)  # rows of the grid, from above
        rows, columns = slice(M - 1 - last, M - first), slice(diagonal - last, diagonal - first + 1)
        left, up = row_MP[rows], column_TP[columns]
        right = np.minimum(left, up)
        np.copyto(right, up, where=from_below_MP[rows] == text_TP[columns])
        column_TP[columns] = left + up - right
        row_MP[rows] = right
    return column_TP.astype(np.int64)


def _fewest_unmatched(begun_TP: NDArray[np.int64], width_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """Over all stretches of `width_P` tokens the fewest that are outside of a longest common subsequence.

    These are the strands that enter from above within a stretch and leave below within it.
    """
    T, P = begun_TP.shape
    first_TP = np.maximum(0, np.arange(T)[:, None] - width_P + 1)
    q, p = np.nonzero(begun_TP >= first_TP)  # strands that some stretch holds
    change = np.bincount(first_TP[q, p] * P + p, minlength=(T + 1) * P)
    change -= np.bincount((begun_TP[q, p] + 1) * P + p, minlength=(T + 1) * P)
    count_TP = change.reshape(T + 1, P)[:T].cumsum(0)
    count_TP[np.arange(T)[:, None] > T - width_P] = T
    return count_TP.min(0)
