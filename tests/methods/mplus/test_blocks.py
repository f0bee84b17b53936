"""Blocks of rows: values that share what they have in common and never see each other's rows."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.errors import InputError
from remanence.methods.mplus.blocks import Blocks, Place

L, C, E = 2, 4, 3


def rows(seed: int, n: int):
    generator = torch.Generator().manual_seed(seed)
    born_LN = torch.randint(0, 1000, (L, n), generator=generator)
    return torch.randn(L, n, C, generator=generator), torch.randn(L, n, E, generator=generator), born_LN


def holds(blocks: Blocks, seeds: list[tuple[int, int]]) -> bool:
    """Whether the blocks hold exactly these appended rows, in order, in every layer."""
    parts = [rows(seed, n) for seed, n in seeds]
    if blocks.num_rows != sum(n for _, n in seeds):
        return False
    for layer in range(L) if blocks.num_rows else ():
        row_NC, key_NE, born_N = (torch.cat([part[i][layer] for part in parts]) for i in range(3))
        index_N = torch.arange(blocks.num_rows).flip(0)
        pairs = [(blocks.rows(layer, index_N), row_NC.flip(0)), (torch.cat(list(blocks.keys(layer))), key_NE)]
        if not all(torch.equal(ours, wanted) for ours, wanted in [*pairs, (blocks.born(layer), born_N)]):
            return False
    return True


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 20)), max_size=12))
def test_forks_never_see_each_others_rows(steps):
    """Each step appends rows to any earlier value; afterwards every value still holds what it held."""
    values: list[tuple[Blocks, list[tuple[int, int]]]] = [(Blocks(Place("float32"), L, C, E, block_rows=4), [])]
    for seed, n, which in steps:
        blocks, seeds = values[which % len(values)]
        values.append((blocks.append(*rows(seed, n)), [*seeds, (seed, n)]))
    for blocks, seeds in values:
        assert holds(blocks, seeds)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_fewer_bits_cost_little(precision):
    row, key, born = rows(0, 10)
    blocks = Blocks(Place(precision), L, C, E, block_rows=4).append(row, key, born)
    found = blocks.rows(1, torch.arange(10)).float()
    assert (found - row[1]).abs().max() <= row.abs().max() / 100
    assert torch.equal(blocks.born(1), born[1])


def test_rows_on_disk_are_the_same_and_leave_nothing_behind(tmp_path: Path):
    parts = rows(3, 10)
    blocks = Blocks(Place("float32", tmp_path / "long"), L, C, E, block_rows=4).append(*parts)
    assert holds(blocks, [(3, 10)])
    del blocks
    gc.collect()
    assert not list((tmp_path / "long").iterdir())


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="int4"):
        Place("int4")  # type: ignore[arg-type]
