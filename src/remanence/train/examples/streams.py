"""Running text for M+: documents of a given length, split into chunks that are written and a last one that is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from remanence.train.core.losses import TEXT
from remanence.train.examples.corpora import Corpora
from remanence.train.examples.documents import MPlusDocument, Sentence, repeat_document
from remanence.train.examples.mixture import Encoder
from remanence.train.recipes.nano_mplus import MPlusPhase, MPlusRecipe, Stream

TRIES = 100
"""Draws per document, until one is long enough for two chunks."""


def draw_streams(
    rng: Random, phase: MPlusPhase, recipe: MPlusRecipe, corpora: Corpora, encoder: Encoder, most_chunks: int
) -> list[MPlusDocument]:
    """The documents of a step, all of one stream and with the same number of chunks.

    Documents are stretches of consecutive paragraphs of books. An empty list if the step has no stream, or the books
    have too few stretches of that length.
    """
    if not (phase.streams and corpora.paragraphs):
        return []
    pick = rng.random()
    for stream in phase.streams:
        if pick < stream.share:
            return _documents(rng, phase, stream, recipe, corpora, encoder, most_chunks)
        pick -= stream.share
    return []


def _documents(
    rng: Random,
    phase: MPlusPhase,
    stream: Stream,
    recipe: MPlusRecipe,
    corpora: Corpora,
    encoder: Encoder,
    most_chunks: int,
) -> list[MPlusDocument]:
    limit, documents = recipe.method["chunk_tokens"], []
    for _ in range(TRIES * phase.documents):
        ids = _stretch(rng, stream, corpora.paragraphs, encoder)
        if parts := split_document(rng, ids, stream.min_chunk_tokens, limit, recipe.sentence_tokens):
            chunks, read = parts
            documents.append(MPlusDocument(chunks, [Sentence(read, [TEXT] * len(read), None)]))
        if len(documents) == phase.documents:
            break
    if len(documents) < phase.documents:
        return []
    count = min(len(document.chunks) for document in documents)
    documents = [_last(document, min(count, most_chunks)) for document in documents]
    return [
        repeat_document(rng, corpora, encoder, len(document.chunks), limit, recipe.sentence_tokens)
        if rng.random() < phase.repeat
        else document
        for document in documents
    ]


def _stretch(rng: Random, stream: Stream, paragraphs: Sequence[str], encoder: Encoder) -> list[int]:
    num_tokens, at, ids = rng.randint(*stream.tokens), rng.randrange(len(paragraphs)), []
    while len(ids) < num_tokens and at < len(paragraphs):
        ids += encoder(paragraphs[at])[0]
        at += 1
    return ids[:num_tokens]


def split_document(
    rng: Random, ids: list[int], least: int, most: int, sentence: int
) -> tuple[list[list[int]], list[int]] | None:
    """(chunks of `least` to `most` tokens, the end that is read); None if it is too short (M+, authors' code).

    A document of fewer than `sentence` tokens is split, and its last chunk is read. A slightly longer one has one chunk
    of `least` tokens. Of others a random end of `least` to `sentence` tokens is read.
    """
    if len(ids) < sentence:
        parts = split_at_random(rng, ids, least, most)
        return (parts[:-1], parts[-1]) if len(parts) > 1 else None
    if len(ids) < sentence + least:
        return [ids[:least]], ids[least:]
    end = len(ids) - rng.randint(least, sentence)
    return split_at_random(rng, ids[:end], least, most), ids[end:]


def split_at_random(rng: Random, ids: list[int], least: int, most: int) -> list[list[int]]:
    """Pieces of `least` to `most` tokens of random length; an empty list for fewer than `least` tokens.

    If the last piece is too short, the pieces before it give it tokens. If they have none to spare, it is joined to the
    piece before it.
    """
    if len(ids) < least:
        return []
    lengths: list[int] = []
    while (left := len(ids) - sum(lengths)) > 0:
        lengths.append(min(left, rng.randint(least, most)))
    need = least - lengths[-1]
    for place in range(len(lengths) - 2, -1, -1):
        moved = max(0, min(need, lengths[place] - least))
        lengths[place], need = lengths[place] - moved, need - moved
        lengths[-1] += moved
    if need > 0 and len(lengths) > 1:
        lengths[-2:] = [sum(lengths[-2:])]
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def last_chunk_only(documents: Sequence[MPlusDocument]) -> list[MPlusDocument]:
    """The documents with their last chunk only, unless a sentence asks for a certain chunk ("two-chunk" in M+)."""
    if any(sentence.place is not None for document in documents for sentence in document.sentences):
        return list(documents)
    return [_last(document, 1) for document in documents]


def _last(document: MPlusDocument, count: int) -> MPlusDocument:
    return replace(document, chunks=document.chunks[-count:])


def surviving_rows(rng: Random, num_chunks: int, write_rows: int, pool_rows: int) -> list[int]:
    """The rows of a document's chunks that are left in a pool of `pool_rows`, ascending.

    All of them if they fit. Else before each write the same share of them is dropped as of the whole pool (M+ drops
    rows even if there is room).
    """
    if num_chunks * write_rows <= pool_rows:
        return list(range(num_chunks * write_rows))
    left: list[int] = []
    for chunk in range(num_chunks):
        leaving = max(len(left) * write_rows // pool_rows, len(left) + write_rows - pool_rows)
        left = sorted(rng.sample(left, len(left) - leaving)) if leaving > 0 else left
        left += range(chunk * write_rows, (chunk + 1) * write_rows)
    return left
