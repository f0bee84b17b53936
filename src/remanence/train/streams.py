"""Streams of running text for M+: documents by their length, split into chunks that are written and a last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from remanence.train.corpora import Corpora
from remanence.train.documents import MPlusDocument, Sentence, repeated
from remanence.train.losses import TEXT
from remanence.train.recipes.nano_mplus import MPlusPhase, MPlusRecipe, Stream
from remanence.train.rows import Encoder

TRIES = 100
"""Documents that are drawn for one which is long enough for two chunks."""


def draw_streams(
    rng: Random, phase: MPlusPhase, recipe: MPlusRecipe, corpora: Corpora, encoder: Encoder, most_chunks: int
) -> list[MPlusDocument]:
    """The documents of a step, all of one stream and with as many chunks; none where the step is of no stream.

    Nor where the books have too few of that length: documents are stretches of the data folder's books, one paragraph
    after the other.
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
    limit, found = recipe.method["chunk_tokens"], []
    for _ in range(TRIES * phase.documents):
        ids = _stretch(rng, stream, corpora.paragraphs, encoder)
        if parts := split_document(rng, ids, stream.min_chunk_tokens, limit, recipe.sentence_tokens):
            chunks, said = parts
            found.append(MPlusDocument(chunks, [Sentence(said, [TEXT] * len(said), None)]))
        if len(found) == phase.documents:
            break
    if len(found) < phase.documents:
        return []
    count = min(len(document.chunks) for document in found)
    found = [_last(document, min(count, most_chunks)) for document in found]
    return [
        repeated(rng, corpora, encoder, len(document.chunks), limit, recipe.sentence_tokens)
        if rng.random() < phase.repeat
        else document
        for document in found
    ]


def _stretch(rng: Random, stream: Stream, paragraphs: Sequence[str], encoder: Encoder) -> list[int]:
    wanted, at, ids = rng.randint(*stream.tokens), rng.randrange(len(paragraphs)), []
    while len(ids) < wanted and at < len(paragraphs):
        ids += encoder(paragraphs[at])[0]
        at += 1
    return ids[:wanted]


def split_document(
    rng: Random, ids: list[int], least: int, most: int, sentence: int
) -> tuple[list[list[int]], list[int]] | None:
    """Chunks of `least` to `most` tokens, and what is read after them (M+, the authors' code); None: too short.

    A document of fewer than `sentence` tokens is split as a whole, and its last chunk is read; a slightly longer one
    has one chunk of `least`; of others a random end of `least` to `sentence` tokens is read.
    """
    if len(ids) < sentence:
        parts = split_at_random(rng, ids, least, most)
        return (parts[:-1], parts[-1]) if len(parts) > 1 else None
    if len(ids) < sentence + least:
        return [ids[:least]], ids[least:]
    end = len(ids) - rng.randint(least, sentence)
    return split_at_random(rng, ids[:end], least, most), ids[end:]


def split_at_random(rng: Random, ids: list[int], least: int, most: int) -> list[list[int]]:
    """Pieces of `least` to `most` tokens, each length as likely; none where there are fewer than `least`.

    A last piece that is too short takes tokens from those before it; where these have none to give it joins the last.
    """
    if len(ids) < least:
        return []
    lengths: list[int] = []
    while (left := len(ids) - sum(lengths)) > 0:
        lengths.append(min(left, rng.randint(least, most)))
    need = least - lengths[-1]
    for place in range(len(lengths) - 2, -1, -1):
        given = max(0, min(need, lengths[place] - least))
        lengths[place], need = lengths[place] - given, need - given
        lengths[-1] += given
    if need > 0 and len(lengths) > 1:
        lengths[-2:] = [sum(lengths[-2:])]
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def alone(documents: Sequence[MPlusDocument]) -> list[MPlusDocument]:
    """With their last chunk, where what is read asks for no other ("two-chunk")."""
    if any(sentence.place is not None for document in documents for sentence in document.sentences):
        return list(documents)
    return [_last(document, 1) for document in documents]


def _last(document: MPlusDocument, count: int) -> MPlusDocument:
    return replace(document, chunks=document.chunks[-count:])


def survivors(rng: Random, num_chunks: int, write_rows: int, pool_rows: int) -> list[int]:
    """Which rows of a document's chunks are left in a pool of `pool_rows`, ascending; all where all have room.

    Else before each write a part of those that are there leaves, as large as what leaves the whole pool (M+, whose
    rows drop out where there is room, too).
    """
    if num_chunks * write_rows <= pool_rows:
        return list(range(num_chunks * write_rows))
    left: list[int] = []
    for chunk in range(num_chunks):
        leaving = max(len(left) * write_rows // pool_rows, len(left) + write_rows - pool_rows)
        left = sorted(rng.sample(left, len(left) - leaving)) if leaving > 0 else left
        left += range(chunk * write_rows, (chunk + 1) * write_rows)
    return left
