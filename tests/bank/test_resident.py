"""Rows in RAM: the same answers as from disk, never older than the table, and gone with what is forgotten."""

from __future__ import annotations

import numpy as np
import pytest

from remanence.bank import Bank, resident

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
    return [*found, sorted(map(str, bank._scope.find("id", chosen))), sorted(keys)]


def test_rows_in_ram_answer_as_the_disk_does(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = fill(bank)
    monkeypatch.setattr(resident, "READS_BEFORE", 10**9)
    expected = ask(bank, ids)
    assert bank._scope.resident.rows(bank._store.version("chunks")) is None
    monkeypatch.setattr(resident, "READS_BEFORE", 1)
    bank._search.forget()
    assert ask(bank, ids) == expected == ask(bank, ids)
    assert bank._scope.resident.rows(bank._store.version("chunks")) is not None


def test_rows_in_ram_go_with_any_change(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "READS_BEFORE", 1)
    ids = fill(bank)
    ask(bank, ids)
    bank.forget([ids[0]])
    assert bank._scope.resident._rows is None
    assert {id for id, _ in bank.search_text("kettle")} == {ids[1], ids[3]}
    assert bank.load(FINGERPRINT, [ids[0]]) == [None]
    new = add_one(bank, "Emil has a kettle too")
    assert new in {id for id, _ in bank.search_text("kettle")}
    bank.put_memories(FINGERPRINT, [ids[1]], [make_memory(9)])
    assert bank._memories.read(FINGERPRINT, [ids[1]])[ids[1]].key_LGND.equal(make_memory(9).key_LGND)


def test_rows_that_are_too_many_stay_on_disk(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "READS_BEFORE", 1)
    ids = fill(bank)
    for name, value in (("MAX_ROWS", 3), ("LIMIT_BYTES", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(resident, name, value)
            bank._search.forget()
            assert len(bank.search_text("kettle")) == 3
            assert bank._scope.resident._rows is None
            assert [row.chunk.id for row in bank._scope.find("id", ids[:1])] == ids[:1]


def test_an_address_of_a_later_row_is_refused() -> None:
    with Bank.open(None) as bank:
        ids = fill(bank)
        rows = resident.Resident(bank._store, "chunks", ["id"])._load(bank._store.version("chunks"))
        assert rows is not None
        assert rows.by_ids([ids[1], "f" * 16, "no id"]).keys() == {ids[1]}
        with pytest.raises(KeyError):
            rows.by_addresses([2**40])
