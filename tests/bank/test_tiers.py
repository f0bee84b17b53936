"""Rows in RAM: the same answers as from disk, never older than the table, and gone with what is forgotten."""

from __future__ import annotations

import numpy as np
import pytest

from remanence.bank import Bank, tiers

from .helpers import FINGERPRINT, add_one, make_memory

TEXTS = ["Ada has a red kettle", "Bob has a blue kettle", "Cleo has a green boat", "Dora has no kettle"]


def fill(bank: Bank) -> list[str]:
    ids = [add_one(bank, text) for text in TEXTS]
    bank.put_memories(FINGERPRINT, ids, [make_memory(i) for i in range(len(ids))])
    bank.put_vectors("e", ids, np.eye(len(ids), 8, dtype=np.float32) + 0.1)
    return ids


def ask(bank: Bank, ids: list[str]) -> list[object]:
    chosen = [ids[2], ids[0], ids[3]]
    keys = [memory.key_LGND.tolist() for memory in bank._memories.read(FINGERPRINT, chosen).values()]
    found = [bank.search_text("kettle"), bank.search_vector(np.ones(8), "e"), bank.texts(chosen)]
    return [*found, sorted(map(str, bank._context.find("id", chosen))), sorted(keys)]


def test_rows_in_ram_answer_as_the_disk_does(disk_bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = fill(disk_bank)
    expected = ask(disk_bank, ids)
    assert not disk_bank._context.chunk_rows.is_loaded
    monkeypatch.setattr(tiers, "READS_BEFORE", 1)
    with Bank.open(disk_bank.path, clock=disk_bank._context.clock) as other:
        assert ask(other, ids) == expected == ask(other, ids)
        held = [other._context.chunk_rows, *other._search._rows.values(), *other._memories._heads.values()]
        assert all(each._rows is not None for each in held)
        assert len({each.name for each in held}) == 3


def test_what_another_wrote_is_seen_at_once(disk_bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "READS_BEFORE", 1)
    ids = fill(disk_bank)
    with Bank.open(disk_bank.path, clock=disk_bank._context.clock) as other:
        ask(other, ids)
        disk_bank.forget([ids[1]])
        disk_bank.compact()
        assert {id for id, _ in other.search_text("kettle")} == {ids[0], ids[3]}
        assert other.texts(ids).keys() == {ids[0], ids[2], ids[3]}
        disk_bank.put_memories(FINGERPRINT, [ids[0]], [make_memory(9)])
        assert other._memories.read(FINGERPRINT, ids)[ids[0]].key_LGND.equal(make_memory(9).key_LGND)


def test_a_table_that_is_made_again_is_another_one(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "READS_BEFORE", 1)
    ids = fill(bank)
    ask(bank, ids)
    bank.drop_memories(FINGERPRINT)
    bank.put_memories(FINGERPRINT, ids[::-1], [make_memory(10 + i) for i in range(len(ids))])
    for id, memory in bank._memories.read(FINGERPRINT, ids).items():
        assert memory.key_LGND.equal(make_memory(10 + ids[::-1].index(id)).key_LGND)


def test_rows_in_ram_go_with_any_change(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "READS_BEFORE", 1)
    ids = fill(bank)
    ask(bank, ids)
    bank.forget([ids[0]])
    assert not bank._context.chunk_rows.is_loaded
    assert {id for id, _ in bank.search_text("kettle")} == {ids[1], ids[3]}
    assert bank.load(FINGERPRINT, [ids[0]]) == [None]
    new = add_one(bank, "Emil has a kettle too")
    assert new in {id for id, _ in bank.search_text("kettle")}
    bank.put_memories(FINGERPRINT, [ids[1]], [make_memory(9)])
    assert bank._memories.read(FINGERPRINT, [ids[1]])[ids[1]].key_LGND.equal(make_memory(9).key_LGND)


@pytest.mark.parametrize(("name", "value"), [("MAX_ROWS", 3), ("LIMIT_BYTES", 100)])
def test_rows_that_are_too_many_stay_on_disk(
    disk_bank: Bank, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    ids = fill(disk_bank)
    monkeypatch.setattr(tiers, "READS_BEFORE", 1)
    monkeypatch.setattr(tiers, name, value)
    with Bank.open(disk_bank.path, clock=disk_bank._context.clock) as other:
        assert len(other.search_text("kettle")) == 3
        assert not other._context.chunk_rows.is_loaded
        assert [row.chunk.id for row in other._context.find("id", ids[:1])] == ids[:1]


def test_an_address_of_a_later_row_is_refused() -> None:
    with Bank.open(None) as bank:
        ids = fill(bank)
        rows = tiers.TableRows(bank._store, "chunks", ["id"]).load(bank._store.version_key("chunks"))
        assert rows is not None
        assert rows.by_ids([ids[1], "f" * 16, "no id"]).keys() == {ids[1]}
        with pytest.raises(KeyError):
            rows.by_addresses([2**40])
