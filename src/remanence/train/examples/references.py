"""Cuts running text into sequences and finds a reference for each of their chunks (Memory³ §3.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from remanence.errors import InputError
from remanence.text.bm25 import Bm25
from remanence.text.overlap import exceed
from remanence.text.words import terms

Decode = Callable[[Sequence[Sequence[int]]], list[str]]
BATCH = 16
"""Sequences whose hits are compared with them at once."""


@dataclass(frozen=True)
class Cutting:
    """Sizes in tokens, and how references are chosen.

    `overlap_limit`: the largest share of a reference that may occur in its sequence (Memory³ Eq. 6; 0.9 in training).
    `depth`: how many hits of a chunk are considered. The end of a document is no reference if it is shorter than an
    eighth of `reference_tokens`.
    """

    sequence_tokens: int = 2048
    chunk_tokens: int = 64
    reference_tokens: int = 128
    overlap_limit: float = 0.9
    depth: int = 16

    def __post_init__(self) -> None:
        sizes = (self.chunk_tokens, self.reference_tokens, self.depth)
        if min(sizes) < 1 or self.sequence_tokens < 1 or self.sequence_tokens % self.chunk_tokens:
            raise InputError(
                f"sequences of {self.sequence_tokens} tokens do not fall into chunks of {self.chunk_tokens}",
                f"give a multiple of {self.chunk_tokens}, as in --sequence-tokens 2048",
            )


@dataclass(frozen=True)
class Text:
    """All documents one after the other, as token ids `ids_N`, with their references.

    `begin_D`: where each document begins, and the end of the last. Reference r is `ids_N[first_R[r] : last_R[r]]` and
    belongs to document `owner_R[r]`.
    """

    ids_N: NDArray[np.int32]
    begin_D: NDArray[np.int64]
    first_R: NDArray[np.int64]
    last_R: NDArray[np.int64]
    owner_R: NDArray[np.int32]

    @property
    def num_references(self) -> int:
        return len(self.first_R)

    def reference(self, number: int) -> list[int]:
        return self.ids_N[self.first_R[number] : self.last_R[number]].tolist()

    def document_at(self, place: int) -> int:
        return int(np.searchsorted(self.begin_D, place, "right")) - 1


@dataclass(frozen=True)
class MatchedSequence:
    """A sequence from `begin` on, with one reference number per chunk; None if some chunk has none.

    `rejected`: the number of hits that overlapped too much.
    """

    begin: int
    references: list[int] | None
    rejected: int


def lay_out(
    documents: Sequence[Sequence[int] | NDArray[np.int32]], cutting: Cutting, lead: Sequence[int], tail: Sequence[int]
) -> Text:
    """Joins documents, each as `lead + ids + tail`. References are cut from `ids`, within their document."""
    ids: list[NDArray[np.int32]] = []
    begin_D, first, last, owner = [0], [], [], []
    shortest, size = max(1, cutting.reference_tokens // 8), cutting.reference_tokens
    for number, document in enumerate(documents):
        start, num_tokens = begin_D[-1] + len(lead), len(document)
        cuts = [at for at in range(0, num_tokens, size) if num_tokens - at >= shortest]
        first += [start + at for at in cuts]
        last += [start + min(at + size, num_tokens) for at in cuts]
        owner += [number] * len(cuts)
        ids += [np.asarray(part, np.int32) for part in (lead, document, tail)]
        begin_D.append(start + num_tokens + len(tail))
    ids_N = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    first_R, last_R = np.array(first, np.int64), np.array(last, np.int64)
    return Text(ids_N, np.array(begin_D), first_R, last_R, np.array(owner, np.int32))


def hidden(text: Text, begin: int, end: int) -> range:
    """The references that a sequence may not have: those of its own documents that end after it begins."""
    last = text.document_at(end - 1)
    return range(int(np.searchsorted(text.last_R, begin, "right")), int(np.searchsorted(text.owner_R, last, "right")))


def find_references(
    text: Text, cutting: Cutting, decode: Decode, advance: Callable[[int], None] = lambda done: None
) -> Iterator[MatchedSequence]:
    """All whole sequences in order, with their references.

    Each chunk searches with its own words by BM25 among all references except `hidden` ones, and takes the best hit
    that does not overlap the sequence too much. `advance` is called with the number of references that were indexed,
    then of sequences that are done.
    """
    index = Bm25(_terms_of(text, decode, advance))
    size = cutting.sequence_tokens
    begins = iter(range(0, len(text.ids_N) - size + 1, size))
    while part := list(islice(begins, BATCH)):
        sequences = [text.ids_N[begin : begin + size] for begin in part]
        hits = [
            _hits(index, decode, sequence, cutting, hidden(text, begin, begin + size))
            for begin, sequence in zip(part, sequences, strict=True)
        ]
        chosen = choose(sequences, hits, text.reference, cutting.overlap_limit)
        for begin, (references, rejected) in zip(part, chosen, strict=True):
            yield MatchedSequence(begin, references, rejected)
        advance(len(part))


def _terms_of(text: Text, decode: Decode, advance: Callable[[int], None]) -> Iterator[list[str]]:
    every = iter(range(text.num_references))
    while part := list(islice(every, 1024)):
        yield from map(terms, decode([text.reference(number) for number in part]))
        advance(len(part))


def _hits(
    index: Bm25, decode: Decode, sequence: NDArray[np.int32], cutting: Cutting, without: range
) -> list[list[int]]:
    chunks = sequence.reshape(-1, cutting.chunk_tokens).tolist()
    return [index.best(terms(query), cutting.depth, without) for query in decode(chunks)]


def choose(
    sequences: Sequence[NDArray[np.int32]],
    hits: Sequence[Sequence[Sequence[int]]],
    reference: Callable[[int], list[int]],
    limit: float,
) -> list[tuple[list[int] | None, int]]:
    """For each sequence: the first hit of each chunk that overlaps it by at most `limit`, and the rejected hits.

    The list is None if a chunk has no such hit. No pair is compared twice; many pairs are compared at once.
    """
    rank = {(s, c): 0 for s, row in enumerate(hits) for c in range(len(row))}
    exceeds: dict[tuple[int, int], bool] = {}

    def hit(s: int, c: int) -> int | None:
        numbers = hits[s][c]
        return numbers[rank[s, c]] if rank[s, c] < len(numbers) else None

    undecided = list(rank)
    while undecided:
        pairs = {(s, number): None for s, c in undecided if (number := hit(s, c)) is not None}
        fresh = [pair for pair in pairs if pair not in exceeds]
        results = exceed([(sequences[s], reference(number)) for s, number in fresh], limit)
        exceeds |= dict(zip(fresh, results, strict=True))
        undecided = [(s, c) for s, c in undecided if (number := hit(s, c)) is not None and exceeds[s, number]]
        for place in undecided:
            rank[place] += 1
    matches: list[tuple[list[int] | None, int]] = []
    for s, row in enumerate(hits):
        chosen = [hit(s, c) for c in range(len(row))]
        whole = [number for number in chosen if number is not None]
        matches.append((whole if len(whole) == len(row) else None, sum(rank[s, c] for c in range(len(row)))))
    return matches
