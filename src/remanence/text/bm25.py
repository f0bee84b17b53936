"""BM25 over numbered texts in RAM: exact, the same on every machine, and with a range of texts left out of a search."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

K1, B = 1.2, 0.75
"""Lucene's: how soon more of a term says nothing more, and how much longer texts are held back."""


class Bm25:
    """An index of texts, given as their terms; a text's number is its place.

    Postings as arrays, one stretch for each term: a search reads those of its terms alone. Banks search with Lance; an
    offline pass over millions of chunks wants no disk, no writer, and ties that fall the same way everywhere.
    """

    def __init__(self, texts: Iterable[Sequence[str]]) -> None:
        self.numbers: dict[str, int] = {}
        terms, owners, times, lengths = (array("i") for _ in range(4))
        for owner, text in enumerate(texts):
            lengths.append(len(text))
            for term, count in Counter(text).items():
                terms.append(self.numbers.setdefault(term, len(self.numbers)))
                owners.append(owner)
                times.append(count)
        self.num_texts = len(lengths)
        term_P, length_R = np.array(terms, np.int32), np.array(lengths, np.float64)
        order_P = np.argsort(term_P, kind="stable")
        self.owner_P = np.array(owners, np.int32)[order_P]
        count_V = np.bincount(term_P, minlength=len(self.numbers))
        self.end_V = np.cumsum(count_V)
        self.begin_V = self.end_V - count_V
        rarity_V = np.log(1 + (self.num_texts - count_V + 0.5) / (count_V + 0.5))
        times_P = np.array(times, np.float64)[order_P]
        mean = length_R.mean() if lengths and length_R.any() else 1.0
        held_P = K1 * (1 - B + B * length_R[self.owner_P] / mean)
        self.worth_P = rarity_V[term_P[order_P]] * times_P * (K1 + 1) / (times_P + held_P)

    def best(self, query: Iterable[str], limit: int, without: range = range(0)) -> list[int]:
        """Numbers of at most `limit` texts that share a term with `query`, best first, of equals the lower number.

        Those in `without` are passed over. A term of the query counts once.
        """
        score_R = self.scores(query)
        score_R[without.start : without.stop] = 0
        found_N = np.flatnonzero(score_R)
        if len(found_N) > limit:
            least = np.partition(score_R[found_N], -limit)[-limit]
            found_N = found_N[score_R[found_N] >= least]
        return found_N[np.lexsort((found_N, -score_R[found_N]))][:limit].tolist()

    def scores(self, query: Iterable[str]) -> NDArray[np.float64]:
        """Of every text; terms are added in the order of their letters, so that sums are rounded alike everywhere."""
        score_R = np.zeros(self.num_texts)
        for term in sorted(set(query)):
            if (number := self.numbers.get(term)) is not None:
                part = slice(self.begin_V[number], self.end_V[number])
                score_R[self.owner_P[part]] += self.worth_P[part]
        return score_R
