"""References of chunks, found the obvious way: every one is scored for every chunk, by the formulas as written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tests.reference.overlap import overlap

K1, B = 1.2, 0.75


def bm25(texts: Sequence[Sequence[str]], query: Iterable[str], number: int) -> float:
    """Of one text; terms in the order of their letters, each once."""
    total, mean = 0.0, np.mean([len(text) for text in texts])
    for term in sorted(set(query)):
        containing = sum(term in text for text in texts)
        times = float(texts[number].count(term))
        rarity = np.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
        total += rarity * times * (K1 + 1) / (times + K1 * (1 - B + B * len(texts[number]) / mean))
    return float(total)


def references(
    stream: Sequence[int],
    document_of: Sequence[int],
    spans: Sequence[tuple[int, int]],
    sizes: tuple[int, int],
    terms: Callable[[Sequence[int]], list[str]],
    limit: float,
    depth: int,
) -> list[tuple[list[int] | None, int]]:
    """Of each sequence of `sizes[0]` tokens a reference for every chunk of `sizes[1]`; how many were passed over."""
    texts = [terms(stream[first:last]) for first, last in spans]
    found = []
    for begin in range(0, len(stream) - sizes[0] + 1, sizes[0]):
        sequence = stream[begin : begin + sizes[0]]
        own = {document_of[i] for i in range(begin, begin + sizes[0])}
        allowed = [r for r, (first, last) in enumerate(spans) if document_of[first] not in own or last <= begin]
        chosen, passed = [], 0
        for at in range(begin, begin + sizes[0], sizes[1]):
            query = terms(stream[at : at + sizes[1]])
            scores = {r: bm25(texts, query, r) for r in allowed}
            ranked = sorted((r for r in allowed if scores[r] > 0), key=lambda r: (-scores[r], r))[:depth]
            good = [overlap(sequence, stream[slice(*spans[r])]) <= limit for r in ranked]
            place = good.index(True) if True in good else len(good)
            passed += place
            chosen.append(ranked[place] if place < len(ranked) else None)
        found.append((None if None in chosen else chosen, passed))
    return found
