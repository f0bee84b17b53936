"""Documents of running text by length: split as M+ splits them, in the shares that a recipe names."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

import remanence as rm
from remanence.train.examples.corpora import Corpora
from remanence.train.examples.documents import MPlusDocument, Sentence
from remanence.train.examples.mixture import Encoder
from remanence.train.examples.streams import (
    draw_streams,
    last_chunk_only,
    split_at_random,
    split_document,
    surviving_rows,
)
from remanence.train.recipes.nano_mplus import MPlusPhase, MPlusRecipe, Stream
from tests.train.tiny_runs import PARAGRAPHS

ENCODER = Encoder(rm.load("tiny").tokenizer)
RECIPE = MPlusRecipe(sentence_tokens=60, method={**MPlusRecipe().method, "chunk_tokens": 40})


@pytest.mark.parametrize("count", [0, 7, 8, 15, 16, 17, 31, 63, 64, 71, 72, 73, 200, 1000])
def test_every_token_is_in_one_chunk_or_read_after_them(count: int):
    ids = list(range(count))
    for seed in range(60):
        parts = split_document(Random(seed), ids, 8, 20, 64)
        if parts is None:
            assert count < 64, "only a short document can be one chunk or none"
            continue
        chunks, said = parts
        assert [token for chunk in (*chunks, said) for token in chunk] == ids
        assert chunks
        assert all(8 <= len(chunk) <= 20 for chunk in chunks)
        assert len(said) <= 64
        if count >= 72:
            assert 8 <= len(said) <= 64
    assert (split_document(Random(0), ids, 8, 20, 64) is None) is (count < 8) or 8 <= count < 64


def test_a_short_tail_takes_from_those_before_it_or_joins_them():
    assert split_at_random(Random(0), list(range(7)), 8, 20) == []
    for length in range(8, 120):
        for seed in range(20):
            pieces = split_at_random(Random(seed), list(range(length)), 8, 20)
            assert [token for piece in pieces for token in piece] == list(range(length))
            assert all(8 <= len(piece) <= 20 for piece in pieces)
    same = [split_at_random(Random(5), list(range(90)), 8, 20) for _ in range(2)]
    assert same[0] == same[1]


def test_documents_of_a_step_are_of_one_stream_and_streams_have_their_shares():
    streams = (Stream(0.5, (100, 200), 8), Stream(0.25, (400, 600), 30))
    phase = MPlusPhase(1, documents=2, chunks=(3, 3), repeat=0.0, streams=streams)
    corpora, short, long, none = Corpora(paragraphs=PARAGRAPHS), 0, 0, 0
    for seed in range(400):
        documents = draw_streams(Random(seed), phase, RECIPE, corpora, ENCODER, 3)
        none += not documents
        if documents:
            assert len(documents) == 2
            assert len({len(document.chunks) for document in documents}) == 1
            least = min(len(chunk) for document in documents for chunk in document.chunks)
            long += least >= 30
            short += least < 30
            assert all(len(document.chunks) <= 3 for document in documents)
    assert [short / 400, long / 400, none / 400] == pytest.approx([0.5, 0.25, 0.25], abs=0.08)
    assert draw_streams(Random(0), phase, RECIPE, Corpora(), ENCODER, 3) == []
    assert draw_streams(Random(0), replace(phase, streams=()), RECIPE, corpora, ENCODER, 3) == []
    endless = replace(phase, streams=(Stream(1.0, (1, 3), 8),))
    assert draw_streams(Random(0), endless, RECIPE, corpora, ENCODER, 3) == [], "no document is long enough"
    repeats = draw_streams(Random(1), replace(phase, repeat=1.0), RECIPE, corpora, ENCODER, 3)
    assert all(ENCODER.tokenizer.decode(d.sentences[0].ids).startswith("Repeat:") for d in repeats)
    with pytest.raises(rm.InputError, match=r"add up to 1\.2"):
        replace(RECIPE, stages=(replace(phase, streams=(Stream(0.6, (1, 2)), Stream(0.6, (1, 2)))),))


def test_what_is_read_alone_has_one_chunk_unless_it_asks_for_another():
    text = MPlusDocument([[1], [2]], [Sentence([3], [1], None)])
    asks = MPlusDocument([[1], [2]], [Sentence([3], [1], 0)])
    assert last_chunk_only([text])[0].chunks == [[2]]
    assert last_chunk_only([text, asks]) == [text, asks]


def test_rows_of_many_chunks_leave_as_they_would_leave_a_pool():
    assert surviving_rows(Random(0), 4, 8, 32) == list(range(32)), "all have room"
    left = surviving_rows(Random(0), 40, 8, 32)
    assert left == sorted(set(left))
    assert len(left) <= 32
    assert left[-8:] == list(range(312, 320)), "the newest are whole"
    ages = [320 - row for seed in range(50) for row in surviving_rows(Random(seed), 40, 8, 32)]
    newer, older = (sum(low <= age < low + 64 for age in ages) for low in (1, 65))
    assert newer > 2 * older > 0
