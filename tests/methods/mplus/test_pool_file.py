"""A pool on disk: what comes back goes on bit for bit, and nothing else comes back."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from remanence.errors import BankCorrupted, BankMismatch, InputError
from remanence.methods.mplus.method import MPlus
from remanence.methods.mplus.pool import Pool, PoolHistory
from remanence.methods.mplus.pool_file import load_history, save_history
from tests.methods.mplus.helpers import SMALL, small, small_lm

CHUNKS = [list(range(3, 3 + n)) for n in (9, 6, 24, 2, 13, 6, 17, 5, 8, 24, 3)]
PRINT = "ab" * 32


@pytest.fixture(scope="module")
def lm():
    return small_lm()


def save_pool(pool: Pool, file: Path, fingerprint: str) -> None:
    save_history(PoolHistory(pool), file, fingerprint)


def load_pool(file: Path, like: Pool, fingerprint: str) -> Pool:
    return load_history(file, PoolHistory(like), fingerprint).pool


def written(lm, method, chunks=CHUNKS) -> Pool:
    pool = method.fresh(lm, seed=3)
    for ids in chunks:
        pool = method.add(lm, pool, ids)
    return pool


def equal(a: Pool, b: Pool) -> bool:
    """Bit for bit, long-term memory too."""
    parts = [*zip(a.long.blocks.parts().values(), b.long.blocks.parts().values(), strict=True)]
    parts += [(a.row_LNC, b.row_LNC), (a.born_LN, b.born_LN), (a.random, b.random), (a.long.oldest_L, b.long.oldest_L)]
    same = all(torch.equal(one, other) for one, other in parts)
    return same and (a.clock, a.long.num_merged) == (b.clock, b.long.num_merged)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("eviction", ["age", "reference"])
def test_a_saved_pool_continues_like_the_one_in_ram(lm, tmp_path: Path, precision, eviction):
    method = small(lm, precision=precision, eviction=eviction)
    pool = written(lm, method)
    save_pool(pool, tmp_path / "pool", PRINT)
    loaded = load_pool(tmp_path / "pool", method.fresh(lm), PRINT)
    assert equal(pool, loaded)
    for ids in CHUNKS:
        pool, loaded = method.add(lm, pool, ids), method.add(lm, loaded, ids)
    assert equal(pool, loaded)


def test_a_snapshot_is_the_value_itself_and_a_fork_goes_its_own_way(lm):
    """What was kept is as it was, however many writes follow it; a fork replayed alike ends alike."""
    method = small(lm)
    snapshot = written(lm, method, CHUNKS[:5])
    before = {name: tensor.clone() for name, tensor in snapshot.long.blocks.parts().items()}
    one = other = snapshot
    for ids in CHUNKS[5:]:
        one = method.add(lm, one, ids)
    for ids in reversed(CHUNKS):
        other = method.add(lm, other, ids)
    again = snapshot
    for ids in CHUNKS[5:]:
        again = method.add(lm, again, ids)
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot.long.blocks.parts().items())
    assert equal(one, again)
    assert equal(one, written(lm, method))
    assert not torch.equal(one.row_LNC, other.row_LNC)


def test_a_cut_or_changed_file_is_refused(lm, tmp_path: Path):
    method, file = small(lm), tmp_path / "pool"
    save_pool(written(lm, method), file, PRINT)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], b"", whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]):
        file.write_bytes(damaged)
        with pytest.raises(BankCorrupted):
            load_pool(file, method.fresh(lm), PRINT)


def test_a_changed_word_about_the_pool_is_refused(lm, tmp_path: Path):
    method, file = small(lm), tmp_path / "pool"
    save_pool(written(lm, method), file, PRINT)
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    metadata["numbers"] = json.dumps({"clock": 1, "num_merged": 0})
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    gc.collect()
    save_file(tensors, tmp_path / "other", metadata)
    with pytest.raises(BankCorrupted):
        load_pool(tmp_path / "other", method.fresh(lm), PRINT)


def test_a_pool_of_another_model_or_shape_is_refused(lm, tmp_path: Path):
    method, file = small(lm), tmp_path / "pool"
    save_pool(written(lm, method), file, PRINT)
    with pytest.raises(BankMismatch, match="another model"):
        load_pool(file, method.fresh(lm), "cd" * 32)
    with pytest.raises(BankMismatch, match="shape"):
        load_pool(file, small(lm, pool_blocks=4).fresh(lm), PRINT)
    with pytest.raises(InputError, match="no pool"):
        load_pool(tmp_path / "nothing", method.fresh(lm), PRINT)


def test_what_cannot_be_written_leaves_the_pool_as_it_was(lm):
    method = small(lm)
    pool = written(lm, method, CHUNKS[:3])
    for ids, reason in (([], "0 tokens"), ([5] * 25, "25 tokens"), ([10**6], "not in the vocabulary"), ([-1], "-1")):
        with pytest.raises(InputError, match=reason):
            method.add(lm, pool, ids)
    with pytest.raises(InputError, match="not finite"):
        method.take(lm, pool, torch.full((2, 6, 64), float("nan")))
    with pytest.raises(InputError, match=r"\(2, 6, 32\).*are of another model"):
        method.take(lm, pool, torch.zeros(2, 6, 32))
    with pytest.raises(InputError, match="cannot take the 6 rows"):
        small(lm, capacity_rows=5)
    with pytest.raises(InputError, match=r"eviction is 'foo' -> use one of age, reference"):
        small(lm, eviction="foo")
    with pytest.raises(InputError, match=r"begin with a pool of 18 rows -> the settings ask for 24"):
        MPlus(replace(method.config, pool_blocks=4), method.modules(lm)).fresh(lm)
    assert equal(pool, written(lm, method, CHUNKS[:3]))


def test_a_capacity_in_bytes_holds_as_many_rows_as_fit(lm):
    """What living rows take, their keys and births counted, stays within the bytes that were given."""
    per_row = small(lm).fresh(lm).long.blocks.bytes_of_row
    assert per_row == lm.dims.num_layers * (4 * lm.dims.width + 4 * SMALL["key_width"] + 8)
    method = small(lm, capacity_bytes=30 * per_row + 1)
    pool = method.fresh(lm)
    assert pool.long.keeping.capacity_rows == 30
    for number in range(14):
        pool = method.add(lm, pool, list(range(60 + number, 80 + number)))
        assert all(0 < int(pool.long.alive(layer).sum()) <= 30 for layer in range(lm.dims.num_layers))
    with pytest.raises(InputError, match="5 rows cannot take the 6 rows"):
        small(lm, capacity_bytes=5 * per_row).fresh(lm)
