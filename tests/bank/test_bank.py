"""Chunks in, chunks out: ids, doubles, order, namespaces, expiry and what supersedes what."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import pytest

from remanence.bank import Bank
from remanence.errors import InputError, UnknownChunk
from remanence.files import writer_lock

from .helpers import NOON, add_one, draft


def test_id_is_the_start_of_the_hash_of_namespace_and_text(bank: Bank) -> None:
    id = add_one(bank, "Bob likes tea.")
    assert id == hashlib.sha256(b"default\0Bob likes tea.").hexdigest()[:16]


def test_chunk_comes_back_as_it_was_given(bank: Bank) -> None:
    fields = {"source": "it's.txt", "start": 3, "end": 20, "expires": NOON + 9.5, "metadata": {"lang": "日本", "a": ""}}
    id = add_one(bank, "Ein \"Text\"\n\twith 'quotes' 😀\\", **fields)
    [chunk] = bank.get([id])
    assert {name: getattr(chunk, name) for name in fields} == fields
    assert (chunk.text, chunk.id, chunk.created) == ("Ein \"Text\"\n\twith 'quotes' 😀\\", id, NOON)


def test_same_text_is_stored_once_and_says_so(bank: Bank) -> None:
    first, second = bank.add([draft("one"), draft("one")])
    assert (first[1], second[1]) == (True, False)
    assert bank.add([draft("two"), draft("one")])[1] == (first[0], False)
    assert len(bank) == 2
    assert bank.has(["one", "three", "two"]) == [True, False, True]


def test_add_nothing(bank: Bank) -> None:
    assert bank.add([]) == []
    assert (len(bank), bank.list(), bank.get([]), bank.search_text("word")) == (0, [], [], [])


@pytest.mark.parametrize("text", ["", "  \n", "nul\0", "half \ud83d"])
def test_text_that_cannot_be_stored_is_refused_and_nothing_is_added(bank: Bank, text: str) -> None:
    with pytest.raises(InputError, match="->"):
        bank.add([draft("good"), draft(text)])
    assert len(bank) == 0


@pytest.mark.parametrize(
    "fields", [{"expires": math.nan}, {"start": -1}, {"start": 5, "end": 4}, {"metadata": {"a": 1}}, {"source": "\0"}]
)
def test_fields_that_make_no_sense_are_refused(bank: Bank, fields: dict) -> None:
    with pytest.raises(InputError):
        bank.add([draft("good", **fields)])


def test_unknown_id_is_named(bank: Bank) -> None:
    add_one(bank, "one")
    for id in ("0" * 16, "' OR 1=1 --", "Z"):
        with pytest.raises(UnknownChunk, match=id):
            bank.get([id])


def test_list_keeps_order_pages_and_filters_by_source(bank: Bank) -> None:
    bank.add([draft(f"text {number}", source="a'b" if number % 2 else "c") for number in range(7)])
    assert [chunk.text for chunk in bank.list()] == [f"text {number}" for number in range(7)]
    assert [chunk.text for chunk in bank.list(2, 3)] == ["text 3", "text 4"]
    assert [chunk.text for chunk in bank.list(source="a'b")] == ["text 1", "text 3", "text 5"]
    assert bank.list(0) == []
    assert bank.list(5, 100) == []


def test_bank_is_there_after_reopening(disk_bank: Bank, tmp_path: Path) -> None:
    id = add_one(disk_bank, "Ada's locker code is 4417.")
    disk_bank.close()
    with Bank.open(tmp_path / "bank") as bank:
        assert bank.get([id])[0].text == "Ada's locker code is 4417."
        assert bank.search_text("locker")[0][0] == id


def test_expired_chunk_is_nowhere(bank: Bank, clock) -> None:
    id = add_one(bank, "The parcel comes today.", expires=NOON + 10)
    add_one(bank, "A parcel is a box.")
    assert len(bank) == 2
    clock.now = NOON + 10
    assert len(bank) == len(bank.list(include_superseded=True)) == len(bank.search_text("parcel")) == 1
    assert bank.has(["The parcel comes today."]) == [False]
    with pytest.raises(UnknownChunk):
        bank.get([id])
    with pytest.raises(UnknownChunk):
        bank.forget([id])
    assert bank.expire() == 1
    assert bank.expire() == 0


def test_text_that_expired_can_be_written_again(bank: Bank, clock) -> None:
    id = add_one(bank, "soon gone", expires=NOON + 10)
    clock.now = NOON + 20
    assert bank.add([draft("soon gone", source="new")]) == [(id, True)]
    assert bank.get([id])[0].source == "new"


def test_the_longest_promise_wins(bank: Bank, clock) -> None:
    id = add_one(bank, "kept", expires=NOON + 10)
    add_one(bank, "kept", expires=NOON + 5)
    assert bank.get([id])[0].expires == NOON + 10
    add_one(bank, "kept")
    clock.now = NOON + 100
    assert bank.get([id])[0].expires is None


def test_superseded_chunk_leaves_searches_at_once_but_not_the_bank(bank: Bank) -> None:
    old = add_one(bank, "Ada's locker code is 4417.")
    assert bank.search_text("locker")[0][0] == old
    new = add_one(bank, "Ada's locker code is 5000.", supersedes=old)
    assert [id for id, _ in bank.search_text("locker")] == [new]
    assert ([c.id for c in bank.list()], len(bank)) == ([new], 1)
    assert [c.id for c in bank.list(include_superseded=True)] == [old, new]
    assert bank.get([old, new])[1].supersedes == old


def test_forgetting_the_newer_makes_the_older_visible_again(bank: Bank) -> None:
    old = add_one(bank, "code 4417")
    new = add_one(bank, "code 5000", supersedes=old)
    bank.forget([new])
    assert [id for id, _ in bank.search_text("code")] == [old]


def test_expiry_of_the_newer_makes_the_older_visible_again(bank: Bank, clock) -> None:
    old = add_one(bank, "the office is open")
    add_one(bank, "the office is closed this week", supersedes=old, expires=NOON + 10)
    assert [id for id, _ in bank.search_text("office")] != [old]
    clock.now = NOON + 11
    assert [id for id, _ in bank.search_text("office")] == [old]


def test_saying_it_again_makes_it_true_again(bank: Bank) -> None:
    first = add_one(bank, "code 4417")
    second = add_one(bank, "code 5000", supersedes=first)
    assert add_one(bank, "code 4417", supersedes=second) == first
    assert [id for id, _ in bank.search_text("code")] == [first]


def test_superseded_in_the_same_batch(bank: Bank) -> None:
    old = add_one(bank, "code 1")
    bank.forget([old])
    bank.add([draft("code 2", supersedes=old), draft("code 1")])
    assert [chunk.text for chunk in bank.list()] == ["code 2"]


def test_forgotten_and_written_again_is_not_superseded_by_old_news(bank: Bank) -> None:
    old = add_one(bank, "code 1")
    add_one(bank, "code 2", supersedes=old)
    bank.forget([old])
    add_one(bank, "code 1")
    assert {chunk.text for chunk in bank.list()} == {"code 1", "code 2"}


def test_superseding_the_unknown_stores_nothing(bank: Bank) -> None:
    with pytest.raises(UnknownChunk, match="0" * 16):
        bank.add([draft("good"), draft("new", supersedes="0" * 16)])
    id = add_one(bank, "same")
    with pytest.raises(InputError, match="itself"):
        bank.add([draft("same", supersedes=id)])
    assert len(bank) == 1


def test_a_count_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    with Bank.open(tmp_path / "bank") as bank:
        id = add_one(bank, "one")
    reader = Bank.open(tmp_path / "bank", lock_seconds=0.01)
    reader.note_recalled([id])
    with writer_lock(tmp_path / "bank" / "bank.lock", 1):
        reader._counts.flush()
        assert reader.usage()[id][0] == 1, "it is still pending"
    with writer_lock(tmp_path / "bank" / "bank.lock", 1):
        reader.close()


def test_usage_counts_recalls_and_survives(disk_bank: Bank, tmp_path: Path, clock) -> None:
    one, two = (add_one(disk_bank, text) for text in ("one", "two"))
    disk_bank.note_recalled([one, two])
    clock.now += 5
    disk_bank.note_recalled([one])
    assert disk_bank.usage() == {one: (2, NOON + 5), two: (1, NOON)}
    disk_bank.close()
    with Bank.open(tmp_path / "bank", clock=clock) as bank:
        bank.note_recalled([one])
        bank.forget([two])
        assert bank.usage() == {one: (3, NOON + 5)}
        assert bank.stats().num_recalls == 3


def test_another_writer_is_seen_though_the_clock_of_the_disk_is_coarse(tmp_path: Path) -> None:
    versions = tmp_path / "bank" / "chunks.lance" / "_versions"
    with Bank.open(tmp_path / "bank") as reader, Bank.open(tmp_path / "bank") as writer:
        (id, _), *_ = writer.add([draft("a first text")])
        before = versions.stat()
        assert reader.get([id])
        writer.forget([id])
        os.utime(versions, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(UnknownChunk):
            reader.get([id])


def test_a_version_that_has_settled_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remanence.bank.store.RECENT_NS", -1)
    with Bank.open(tmp_path / "bank") as reader, Bank.open(tmp_path / "bank") as writer:
        writer.add([draft("a first text")])
        version = reader._store.version("chunks")
        with monkeypatch.context() as patched:
            patched.setattr(reader._store, "read_at", None)
            assert reader._store.version("chunks") == version
        writer.add([draft("a second text")])
        assert reader._store.version("chunks") > version
