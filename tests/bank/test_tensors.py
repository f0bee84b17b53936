"""Memories and vectors: what is put is what is loaded, per fingerprint, codec and embedder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.bank import Bank, codecs
from remanence.bank.tiers import MemoryCache, memory_bytes
from remanence.errors import BankCorrupted, BankMismatch, InputError, UnknownChunk
from remanence.types import ExplicitMemory

from .helpers import FINGERPRINT, add_one, draft, make_memory


def same(one: ExplicitMemory, other: ExplicitMemory) -> bool:
    tensors = ("key_LGND", "value_LGND", "index_LGN")
    return one.layers == other.layers and all(torch.equal(getattr(one, n), getattr(other, n)) for n in tensors)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
@pytest.mark.parametrize("num_empty", [0, 3, 4])
def test_exact_codecs_give_back_the_same_bits(name: str, dtype: torch.dtype, num_empty: int) -> None:
    memory = make_memory(3, dtype, num_empty)
    assert same(codecs.decode(codecs.encode(memory, name), name), memory)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-20, 1e20), st.integers(1, 40))
def test_int8_is_off_by_half_a_step_of_its_vector_at_most(seed: int, scale: float, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    key, value = (torch.randn(1, 2, 3, width, generator=generator) * scale for _ in range(2))
    key[0, 0, 0] = 0
    memory = ExplicitMemory((5,), key, value, torch.zeros(1, 2, 3, dtype=torch.int32))
    back = codecs.decode(codecs.encode(memory, "int8"), "int8")
    for given_, got in ((key, back.key_LGND), (value, back.value_LGND)):
        bound = given_.abs().amax(-1, keepdim=True) / 254 * 1.001
        assert ((given_ - got).abs() <= bound).all()
    assert not back.key_LGND[0, 0, 0].any()


def test_int8_is_about_half_of_bf16() -> None:
    key = torch.randn(4, 8, 8, 32)
    memory = ExplicitMemory((0, 1, 2, 3), key, key, torch.zeros(4, 8, 8, dtype=torch.int32))
    assert len(codecs.encode(memory, "int8")) < 0.6 * len(codecs.encode(memory, "bf16"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    memory = make_memory(0)
    memory.value_LGND[0, 0, 0, 0] = bad
    with pytest.raises(InputError, match="value"):
        codecs.encode(memory)


def test_float32_beyond_bf16_is_refused_not_made_infinite() -> None:
    memory = make_memory(0, torch.float32)
    memory.key_LGND[0] = torch.finfo(torch.float32).max
    with pytest.raises(InputError, match="fp32"):
        codecs.encode(memory, "bf16")
    assert same(codecs.decode(codecs.encode(memory, "fp32"), "fp32"), memory)


def test_bytes_that_are_no_memory() -> None:
    for payload in (b"", b"\0" * 100, codecs.encode(make_memory(0))[:-5]):
        with pytest.raises(BankCorrupted):
            codecs.decode(payload, "bf16")


@pytest.mark.parametrize("name", codecs.CODECS)
def test_bank_gives_back_what_was_put(bank: Bank, name: str) -> None:
    ids = [id for id, _ in bank.add([draft("one"), draft("two"), draft("three")])]
    bank.put_memories(FINGERPRINT, ids[:2], [make_memory(0), make_memory(1, num_empty=2)], codec=name)
    one, none, two, again = bank.load(FINGERPRINT, [ids[0], ids[2], ids[1], ids[0]])
    assert none is None
    assert again is one
    assert one.key_LGND.shape == (2, 2, 4, 8)
    if name != "int8":
        assert same(one.to(dtype=torch.bfloat16), make_memory(0))
        assert same(two.to(dtype=torch.bfloat16), make_memory(1, num_empty=2))
    assert bank.missing_memories(FINGERPRINT, ids) == [ids[2]] == bank.missing_memories(FINGERPRINT)


def test_memory_is_replaced_not_doubled(bank: Bank) -> None:
    id = add_one(bank, "one")
    for seed in (0, 1):
        bank.put_memories(FINGERPRINT, [id], [make_memory(seed)])
    assert same(bank.load(FINGERPRINT, [id])[0], make_memory(1))
    assert bank.stats().memories == {FINGERPRINT: 1}


def test_memory_of_an_unknown_chunk_is_refused(bank: Bank) -> None:
    id = add_one(bank, "one")
    with pytest.raises(UnknownChunk):
        bank.put_memories(FINGERPRINT, [id, "0" * 16], [make_memory(0), make_memory(1)])
    assert bank.load(FINGERPRINT, [id]) == [None]
    with pytest.raises(InputError, match="2 ids and 1"):
        bank.put_memories(FINGERPRINT, [id, id], [make_memory(0)])
    with pytest.raises(InputError, match="codec"):
        bank.put_memories(FINGERPRINT, [id], [make_memory(0)], codec="pickle")
    with pytest.raises(InputError, match="fingerprint"):
        bank.load("'; --", [id])


def test_fingerprints_are_apart_and_a_mismatch_says_what_to_do(disk_bank: Bank, tmp_path: Path) -> None:
    mine = {"model": "nano", "method": "memory3(tokens=8)"}
    theirs = {"model": "nano", "method": "memory3(tokens=16)"}
    disk_bank.check(FINGERPRINT, mine)
    id = add_one(disk_bank, "one")
    disk_bank.check("cd" * 32, theirs)  # nothing but text yet, which any model can use
    disk_bank.put_memories(FINGERPRINT, [id], [make_memory(0)], description=mine)
    with Bank.open(tmp_path / "bank") as other:
        other.check(FINGERPRINT, mine)
        assert other.fingerprints() == {FINGERPRINT: mine}
        with pytest.raises(BankMismatch, match=r"nano with memory3\(tokens=8\), this session is .*=16.* -> .*migrate"):
            other.check("cd" * 32, theirs)
        other.put_memories("cd" * 32, [id], [make_memory(1)], description=theirs)
        other.check("cd" * 32, theirs)
        assert other.drop_memories(FINGERPRINT) == 1
    assert disk_bank.load(FINGERPRINT, [id]) == [None]
    assert same(disk_bank.load("cd" * 32, [id])[0], make_memory(1))
    with Bank.open(tmp_path / "bank", namespace="other") as other:
        other.check(FINGERPRINT, mine)
        assert other.load("cd" * 32, [id]) == [None]
        assert other.drop_memories("cd" * 32) == 0
    assert disk_bank.verify().ok


def test_cache_keeps_the_last_used_within_its_bytes() -> None:
    size = memory_bytes(make_memory(0))
    cache = MemoryCache(2 * size)
    for name in "abc":
        cache.put(FINGERPRINT, name, make_memory(ord(name)))
        assert cache.get(FINGERPRINT, "a") is None or name != "c" or len(cache) == 2
    assert cache.num_bytes == 2 * size == len(cache) * size
    assert cache.get(FINGERPRINT, "c") is not None
    cache.put(FINGERPRINT, "d", make_memory(4))
    assert cache.get(FINGERPRINT, "c") is not None
    big = make_memory(0)
    cache.put(FINGERPRINT, "big", replace(big, key_LGND=torch.zeros(size)))
    assert cache.get(FINGERPRINT, "big") is None
    cache.discard(["c"])
    cache.clear(FINGERPRINT)
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_cache_counts_and_is_bounded_in_the_bank(tmp_path: Path) -> None:
    size = memory_bytes(make_memory(0))
    with Bank.open(tmp_path / "bank", ram_bytes=3 * size) as bank:
        ids = [id for id, _ in bank.add([draft(f"text {number}") for number in range(10)])]
        bank.put_memories(FINGERPRINT, ids, [make_memory(seed) for seed in range(10)])
        for _ in range(2):
            for id in ids[:2]:
                bank.load(FINGERPRINT, [id])
        bank.load(FINGERPRINT, ids)
        stats = bank.stats()
        assert (stats.ram_hits, stats.ram_memories, stats.ram_bytes) == (4, 3, 3 * size)
        assert stats.ram_bytes <= stats.ram_limit_bytes


def test_vectors_are_found_by_cosine(bank: Bank) -> None:
    ids = [id for id, _ in bank.add([draft(f"text {number}") for number in range(5)])]
    vectors = np.eye(5, 8, dtype=np.float32) * np.arange(1, 6)[:, None]
    bank.put_vectors("e", ids[:4], vectors[:4])
    assert bank.missing_vectors("e") == [ids[4]]
    assert bank.missing_vectors("f") == ids
    hits = bank.search_vector(np.array([0, 3, 1, 0, 0, 0, 0, 0.0]), "e", 2)
    assert [id for id, _ in hits] == ids[1:3]
    assert [score for _, score in hits] == pytest.approx([3 / 10**0.5, 1 / 10**0.5], abs=1e-5)
    bank.put_vectors("e", [ids[1]], -vectors[[1]])
    assert bank.search_vector(vectors[1], "e")[0][1] == pytest.approx(0, abs=1e-5)
    assert bank.search_vector(vectors[1], "unknown") == []


def test_vectors_that_make_no_sense(bank: Bank) -> None:
    ids = [id for id, _ in bank.add([draft("one"), draft("two")])]
    bank.put_vectors("e", ids, np.eye(2, 8))
    bank.put_vectors("e", [], np.zeros((0, 8)))
    for vectors in (np.eye(2, 4), np.eye(1, 8), np.zeros((2, 8)), np.full((2, 8), np.nan), np.zeros(8)):
        with pytest.raises(InputError):
            bank.put_vectors("e", ids, vectors)
    with pytest.raises(UnknownChunk):
        bank.put_vectors("e", ["0" * 16], np.eye(1, 8))
    for vector in (np.zeros(8), np.ones(4), np.full(8, np.inf)):
        with pytest.raises(InputError):
            bank.search_vector(vector, "e")
