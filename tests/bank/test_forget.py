"""Forgotten means: not found, not loaded, not counted; and after `compact` in no byte of any file."""

from __future__ import annotations

import os
import random
import string
from pathlib import Path

import numpy as np
import pytest
import torch

from remanence.bank import Bank
from remanence.errors import UnknownChunk
from remanence.types import ExplicitMemory

from .helpers import FINGERPRINT, add_one, draft, make_memory

COMMON = b"te/oasripcnw.hlm-du012g=:bf3y5&_4v9678k%?xCDASFIBEjPTzRNM+LOqHG"
"""The letters that an FST, in which Lance keeps the words of its text index, writes as one byte each."""


def as_fst(word: str) -> bytes:
    """The bytes of the middle of a word that shares neither its beginning nor its end with others."""
    return bytes(0xC0 | COMMON.index(letter) + 1 for letter in reversed(word.encode()[6:-1]))


def occurrences(folder: Path, *needles: bytes) -> list[tuple[str, bytes]]:
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return [
        (str(file.relative_to(folder)), needle) for file in files for needle in needles if needle in file.read_bytes()
    ]


def num_versions(bank: Bank) -> int:
    """Of the table that has most."""
    return max(len(list(folder.glob("*.manifest"))) for folder in bank.path.glob("*.lance/_versions"))


def noise_memory(seed: int) -> ExplicitMemory:
    bits = np.random.default_rng(seed).integers(0, 2**14, (2, 2, 8, 8, 16), dtype=np.int16)
    key, value = torch.from_numpy(bits).view(torch.bfloat16)
    return ExplicitMemory((0, 1), key.clone(), value.clone(), torch.zeros(2, 8, 8, dtype=torch.int32))


def test_receipt_and_nothing_left_to_recall(bank: Bank) -> None:
    kept, gone = (add_one(bank, text) for text in ("Bob likes tea", "Ada likes tea"))
    vectors = np.eye(2, 8, dtype=np.float32)
    bank.put_vectors("e", [kept, gone], vectors)
    for fingerprint in (FINGERPRINT, "cd" * 32):
        bank.put_memories(fingerprint, [kept, gone], [make_memory(0), make_memory(1)])
        bank.load(fingerprint, [kept, gone])
    receipt = bank.forget([gone, gone])
    assert (receipt.ids, receipt.num_memories, receipt.exact) == ((gone,), 2, True)
    assert receipt.bytes_gone == (bank.path is None)
    assert bank.load(FINGERPRINT, [gone]) == bank.load("cd" * 32, [gone]) == [None]
    assert [id for id, _ in bank.search_text("likes tea")] == [kept]
    assert [id for id, _ in bank.search_vector(vectors[1] + 0.1, "e")] == [kept]
    assert (len(bank), bank.has(["Ada likes tea"]), bank.stats().vectors) == (1, [False], {"e": 1})
    with pytest.raises(UnknownChunk):
        bank.get([gone])


def test_unknown_id_forgets_nothing(bank: Bank) -> None:
    id = add_one(bank, "one")
    for bad in ("f" * 16, "x') OR ('1' = '1"):
        with pytest.raises(UnknownChunk):
            bank.forget([id, bad])
    assert len(bank) == 1


def test_another_handle_does_not_recall_it_from_its_ram(disk_bank: Bank, tmp_path: Path) -> None:
    id = add_one(disk_bank, "one")
    disk_bank.put_memories(FINGERPRINT, [id], [make_memory(0)])
    with Bank.open(tmp_path / "bank") as other:
        assert other.load(FINGERPRINT, [id])[0] is not None
        assert other.get([id])
        disk_bank.forget([id])
        assert other.load(FINGERPRINT, [id]) == [None]
        assert other.search_text("one") == []
        with pytest.raises(UnknownChunk):
            other.get([id])


def test_after_compact_no_file_holds_a_byte_of_it(disk_bank: Bank, tmp_path: Path) -> None:
    rng, letters = random.Random(5), string.ascii_lowercase
    texts = [" ".join("".join(rng.choices(letters, k=9)) for _ in range(6)) for _ in range(60)]
    text, word = "Zqxjkvbpwlm7531 is forgotten", "zqxjkvbpwlm7531"
    ids = [id for id, _ in disk_bank.add([draft(each) for each in [*texts, text]])]
    memories = [noise_memory(seed) for seed in range(len(ids))]
    disk_bank.put_memories(FINGERPRINT, ids, memories, codec="bf16")
    vectors = np.random.default_rng(0).standard_normal((len(ids), 8), dtype=np.float32)
    disk_bank.put_vectors("e", ids, vectors)
    disk_bank.note_recalled(ids)
    disk_bank.index()
    payload = memories[-1].key_LGND.view(torch.int16).numpy().tobytes()[:64]
    needles = (text.encode(), as_fst(word), payload, vectors[-1].tobytes())
    before = occurrences(tmp_path / "bank", *needles)
    assert {needle for _, needle in before} == set(needles), "the search must be able to find what is there"
    old_files = {name for name, _ in before}

    disk_bank.forget([ids[-1]])
    disk_bank.index()
    left = {needle for _, needle in occurrences(tmp_path / "bank", *needles)}
    assert left == set(needles), "Lance's own optimize is not enough (if it is by now, `compact` can be simpler)"
    receipt = disk_bank.compact()

    assert receipt.bytes_gone
    assert occurrences(tmp_path / "bank", *needles, ids[-1].encode()) == []
    assert not any((tmp_path / "bank" / name).exists() for name in old_files)
    assert disk_bank.verify().ok
    assert disk_bank.search_text(texts[3], 1)[0][0] == ids[3]
    assert disk_bank.search_vector(vectors[3], "e", 1)[0][0] == ids[3]
    assert torch.equal(disk_bank.load(FINGERPRINT, [ids[3]])[0].key_LGND, memories[3].key_LGND)


def test_compact_purges_what_expired_and_what_has_no_chunk(bank: Bank, clock) -> None:
    kept = add_one(bank, "kept")
    gone = add_one(bank, "gone soon", expires=clock.now + 1)
    bank.put_memories(FINGERPRINT, [kept, gone], [make_memory(0), make_memory(1)])
    clock.now += 2
    assert bank.compact().num_expired == 1
    assert bank.stats().num_expired == 0
    assert bank.missing_memories(FINGERPRINT, [kept, gone]) == [gone]
    assert bank.verify().ok


def test_compact_twice_and_of_an_empty_bank(bank: Bank) -> None:
    assert bank.compact().num_expired == 0
    add_one(bank, "one")
    bank.compact()
    bank.compact()
    assert bank.search_text("one")


def test_another_namespace_keeps_its_copy(disk_bank: Bank, tmp_path: Path) -> None:
    mine = add_one(disk_bank, "an equal text")
    with Bank.open(tmp_path / "bank", namespace="other") as other:
        theirs = add_one(other, "an equal text")
        with pytest.raises(UnknownChunk):
            disk_bank.forget([theirs])
        disk_bank.forget([mine])
        disk_bank.compact()
        assert other.get([theirs])[0].text == "an equal text"
        assert other.search_text("equal")[0][0] == theirs


@pytest.mark.parametrize("indexed", [False, True])
def test_compaction_leaves_one_version_of_every_table(
    disk_bank: Bank, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    monkeypatch.setattr("remanence.bank.store.MIN_ROWS_FOR_VECTOR_INDEX", 300 if indexed else 10**6)
    ids = [id for id, _ in disk_bank.add([draft(f"text {number}") for number in range(400)])]
    disk_bank.put_vectors("e", ids, np.random.default_rng(0).standard_normal((400, 8), dtype=np.float32))
    disk_bank.forget(ids[:3])
    assert num_versions(disk_bank) > 1
    assert disk_bank.compact().bytes_gone
    assert num_versions(disk_bank) == 1
    disk_bank.add([draft("one more")])
    assert num_versions(disk_bank) > 1
    assert disk_bank.compact().bytes_gone
    assert num_versions(disk_bank) == 1
    assert len(disk_bank.search_vector(np.ones(8), "e", 5)) == 5
