"""`BankSource`: memories are loaded while the search reads chunks, and nothing is told or kept too early."""

from __future__ import annotations

import pytest
import torch
from lancedb.table import AsyncTable

import remanence as rm
from remanence.bank.lance import run
from remanence.errors import BankCorrupted, UnknownChunk
from remanence.lm.load import from_transformers
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.sources import BankSource

TEXTS = ("The tower of Port Ellery has 94 steps.", "Port Ellery smells of tar.", "Otto owns a navy coat.")
QUESTION = "How many steps has the tower of Port Ellery?"


@pytest.fixture
def session():
    with rm.Session(from_transformers(tiny_model(), byte_tokenizer(), "tiny")) as session:
        for text in TEXTS:
            session.write(text)
        yield session


def reader(session: rm.Session, without: tuple[str, ...] = ()) -> BankSource:
    return BankSource(session.lm, session.method, session.bank, session.retriever, without)


def test_memories_are_those_of_the_bank(session: rm.Session) -> None:
    recall = reader(session)
    hits = recall.hits(QUESTION, 2)
    expected = session.bank.load(session.fingerprint, [hit.chunk.id for hit in hits])
    for one, other in zip(recall.memories(hits), expected, strict=True):
        assert other is not None
        assert torch.equal(one.key_LGND, other.key_LGND)


def test_a_chunk_that_is_forgotten_meanwhile_is_named(session: rm.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    recall = reader(session)
    hits = recall.hits(QUESTION, 1)
    monkeypatch.setattr(session.bank, "load", lambda fingerprint, ids: [None] * len(ids))
    with pytest.raises(UnknownChunk, match=f"{hits[0].chunk.id}.*forgotten meanwhile"):
        recall.memories(hits)


def test_a_damaged_memory_is_told_when_it_is_needed(session: rm.Session) -> None:
    first, second = (hit.chunk.id for hit in reader(session).hits(QUESTION, 2))
    [table] = session.bank._store.meta.of_kind("memories")
    with session.bank._store.writing():
        run(AsyncTable(session.bank._store.existing(table).handle).update({"codec": "fp32"}, where=f"id = '{first}'"))
    recall = reader(session, without=(first,))
    assert [hit.chunk.id for hit in recall.hits(QUESTION, 1)] == [second]
    assert len(recall.memories(recall.hits(QUESTION, 1))) == 1
    damaged = reader(session)
    hits = damaged.hits(QUESTION, 1)
    with pytest.raises(BankCorrupted, match=first):
        damaged.memories(hits)
