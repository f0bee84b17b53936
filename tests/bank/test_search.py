"""Text search: any query is a query, new chunks at once, and only what this namespace may see."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from remanence.bank import Bank, TextIndex, store
from remanence.bank.lance import run
from remanence.errors import InputError, UnknownChunk

from .helpers import add_one, draft

QUERIES = [
    '"',
    "(a AND b) OR c:*",
    "tea^2~",
    "'; DROP TABLE chunks",
    "\\",
    "%_",
    "+-!{}[]",
    "the",
    " ",
    "\0",
    "a" * 9_000,
]


@pytest.mark.parametrize("query", QUERIES)
def test_any_text_is_a_query(bank: Bank, query: str) -> None:
    id = add_one(bank, "Bob likes tea")
    assert bank.search_text(query) in ([], [(id, pytest.approx(1, abs=1))])
    assert bank.search_text(f"{query} bob likes tea"[-8_000:])[0][0] == id


def test_words_match_without_case_and_endings_and_in_chinese(bank: Bank) -> None:
    english = add_one(bank, "Ada's lockers were painted: code 4417-b, mail ada@example.com.")
    chinese = add_one(bank, "艾达的储物柜密码是4418。")
    for query in ("LOCKER", "paint", "4417", "What is Ada's code?", "example"):
        assert bank.search_text(query)[0][0] == english, query
    room = add_one(bank, "Mr X is in room 7.")
    for query in ("7", "x", "Which room is Mr X in?"):
        assert bank.search_text(query)[0][0] == room, query
    for query in ("储物柜的密码", "4418"):
        assert bank.search_text(query)[0][0] == chinese, query
    assert bank.search_text("zebra") == bank.search_text("the of and") == []


def test_stemming_can_be_turned_off(tmp_path: Path) -> None:
    with Bank.open(tmp_path / "bank", text_index=TextIndex(stem=False, stop_words="")) as bank:
        id = add_one(bank, "the lockers")
    with Bank.open(tmp_path / "bank") as bank:
        assert bank.search_text("locker") == []
        assert bank.search_text("the")[0][0] == id


def test_scores_fall_and_the_best_comes_first(bank: Bank) -> None:
    bank.add([draft("tea " * 5 + "pot"), draft("tea and coffee and milk and sugar and water"), draft("water")])
    scores = [score for _, score in bank.search_text("tea pot")]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2
    assert len(bank.search_text("tea", 1)) == 1
    assert bank.search_text("tea", 0) == []


def test_new_chunks_are_found_at_once_before_and_after_indexing(disk_bank: Bank) -> None:
    for number in range(150):  # passes the point where the bank tidies itself
        id = add_one(disk_bank, f"entry number{number}")
        if number % 10 == 0:
            assert [hit for hit, _ in disk_bank.search_text(f"number{number}")] == [id]
    disk_bank.index()
    assert len(disk_bank.search_text("entry", 1_000)) == 150
    id = add_one(disk_bank, "entry afterwards")
    assert disk_bank.search_text("afterwards")[0][0] == id


def test_many_hidden_chunks_do_not_crowd_out_the_visible(bank: Bank, clock) -> None:
    bank.add([draft(f"tea tea tea {number}", expires=clock.now + 1) for number in range(120)])
    old = [id for id, _ in bank.add([draft(f"tea tea old {number}") for number in range(30)])]
    bank.add([draft(f"coffee {number}", supersedes=id) for number, id in enumerate(old)])
    found = add_one(bank, "there is some tea in this long text about many other things")
    ids = [chunk.id for chunk in bank.list(include_superseded=True)]
    bank.put_vectors("e", ids, np.eye(len(ids), 200, dtype=np.float32) + 0.01)
    clock.now += 2
    assert [id for id, _ in bank.search_text("tea", 3)] == [found]
    hidden = set(old)
    vector_hits = {id for id, _ in bank.search_vector(np.full(200, 0.01) + np.eye(200)[130], "e", 200)}
    assert not vector_hits & hidden
    assert len(vector_hits) == len(bank) == 31


@pytest.mark.parametrize("name", ["it's", "x' OR '1'='1", 'q"x', "日本 語", "a\\'b", "--", "%", "default"])
def test_a_namespace_sees_its_own_whatever_it_is_called(disk_bank: Bank, tmp_path: Path, name: str) -> None:
    add_one(disk_bank, "shared words in default")
    with Bank.open(tmp_path / "bank", namespace=name) as other:
        id = add_one(other, "shared words in the other")
        for each in (disk_bank, other):
            each.put_vectors("e", each.missing_vectors("e"), np.ones((len(each.missing_vectors("e")), 4)))
        alone = name != "default"
        assert len(other) == (1 if alone else 2)
        assert len(disk_bank) == (1 if alone else 2)
        assert [hit for hit, _ in other.search_text("shared")].count(id) == 1
        assert len(other.search_text("shared")) == len(other.search_vector(np.ones(4), "e")) == len(other)
        assert len(disk_bank.search_text("shared")) == len(disk_bank)
        assert other.stats().num_chunks == sum(other.stats().vectors.values()) == len(other)


def test_another_namespace_that_begins_during_a_search_stays_out_of_it(
    disk_bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_one(disk_bank, "shared words")
    assert len(disk_bank.search_text("shared")) == 1
    with Bank.open(tmp_path / "bank", namespace="other") as other:
        for number in range(3):
            add_one(other, f"shared words {number}")
    monkeypatch.setattr("remanence.bank.search.MAX_RETRIES", 0)  # as after so many changes while it searched
    assert len(disk_bank.search_text("shared")) == 1


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 257, "nul\0"])
def test_namespaces_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="namespace"):
        Bank.open(None, namespace=name)


def test_vector_index_finds_what_brute_force_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MIN_ROWS_FOR_VECTOR_INDEX", 1_000)
    vectors = np.random.default_rng(0).standard_normal((1_500, 32), dtype=np.float32)
    with Bank.open(tmp_path / "bank") as bank:
        ids = [id for id, _ in bank.add([draft(f"text {number}") for number in range(len(vectors))])]
        bank.put_vectors("e", ids, vectors)
        bank.index()
        [table] = bank._store.meta.of_kind("vectors")
        assert "vector" in run(bank._store.existing(table).indexes())
        for query in vectors[:20] + 0.05:
            cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
            hits = bank.search_vector(query, "e", 5)
            assert hits[0][0] == ids[int(cosines.argmax())]
            assert hits[0][1] == pytest.approx(float(cosines.max()), abs=5e-3)  # the index has 8 bits a number
        assert len(bank.search_vector(vectors[0], "e", 1_500)) == 1_500


def test_a_vector_index_of_many_partitions_still_finds_the_nearest(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MIN_ROWS_FOR_VECTOR_INDEX", 1_000)
    monkeypatch.setattr(store, "PARTITION_ROWS", 30)  # 50 partitions, of which a search looks into 16
    vectors = np.random.default_rng(0).standard_normal((1_500, 32), dtype=np.float32)
    ids = [id for id, _ in bank.add([draft(f"text {number}") for number in range(len(vectors))])]
    bank.put_vectors("e", ids, vectors)
    bank.index()
    shares = []
    for query in vectors[:20] + 0.05:
        best = np.argsort(-(vectors @ query / np.linalg.norm(vectors, axis=1)))[:5]
        hits = [id for id, _ in bank.search_vector(query, "e", 5)]
        assert hits[0] == ids[best[0]]
        shares.append(len({ids[i] for i in best} & set(hits)) / 5)
    assert np.mean(shares) > 0.6


def test_the_first_searches_of_two_threads_see_one_namespace_only(tmp_path: Path) -> None:
    vector_E = np.ones(4, dtype=np.float32)
    for name in ("mine", "others"):
        with Bank.open(tmp_path / "bank", namespace=name) as bank:
            ids = [id for id, _ in bank.add([draft(f"tea of {name} {number}") for number in range(5)])]
            bank.put_vectors("e", ids, np.ones((5, 4), dtype=np.float32))
    for _ in range(10):
        with Bank.open(tmp_path / "bank", namespace="mine") as bank, ThreadPoolExecutor(2) as pool:
            texts = pool.submit(bank.search_text, "tea", 20)
            vectors = pool.submit(bank.search_vector, vector_E, "e", 20)
            mine = {chunk.id for chunk in bank.list()}
            assert {id for id, _ in texts.result()} == {id for id, _ in vectors.result()} == mine


def test_a_search_reads_one_state_though_another_writer_changes_it_meanwhile(tmp_path: Path) -> None:
    vector_E = np.ones(4, dtype=np.float32)
    with Bank.open(tmp_path / "bank") as reader, Bank.open(tmp_path / "bank") as writer:
        id = add_one(writer, "tea one")
        writer.put_vectors("e", [id], vector_E[None])
        read_at, written = reader._store.read_at, []

        def changed_meanwhile(names, action, empty):
            async def change(*pins: store.PinnedTablenedTable):
                assert len(set(names)) == len(names), "one table, one state"
                written.append(await asyncio.to_thread(add_one, writer, f"tea {len(written)}"))
                return await action(*pins)

            return read_at(names, change, empty)

        reader._search.visibility()
        reader._store.read_at = changed_meanwhile
        for found in (reader.search_text("tea"), reader.search_vector(vector_E, "e")):
            assert id in [found_id for found_id, _ in found]
            assert written[-1] not in [found_id for found_id, _ in found], "it came after the pin"
        reader._store.read_at = read_at
        assert len(reader.search_text("tea", 100)) == 1 + len(written)


@pytest.mark.parametrize("folder", [True, False])
def test_a_pin_stays_and_the_next_reader_gets_a_newer_one(tmp_path: Path, folder: bool) -> None:
    with Bank.open(tmp_path / "bank" if folder else None) as bank:
        add_one(bank, "one")
        table = bank._store.pinned("chunks")
        add_one(bank, "two")
        assert run(table.count_rows()) == 1
        assert run(bank._store.pinned("chunks").count_rows()) == 2


def test_a_pin_that_has_settled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remanence.bank.store.RECENT_NS", -1)
    with Bank.open(tmp_path / "bank") as bank:
        add_one(bank, "one")
        assert bank._store.pinned("chunks") is bank._store.pinned("chunks")
    with Bank.open(None) as bank:
        add_one(bank, "one")
        assert bank._store.pinned("chunks") is bank._store.pinned("chunks")


def test_what_was_read_before_a_forget_is_not_remembered_after_it(bank: Bank) -> None:
    id = add_one(bank, "a secret")
    version, [chunk] = bank._search.visibility().version, bank.get([id])
    bank.forget([id])
    bank._search.remember(version, [chunk])  # another thread, which had read it before
    with pytest.raises(UnknownChunk):
        bank.get([id])
