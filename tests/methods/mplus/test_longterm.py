"""Long-term memory against a list of rows that is sorted and cut by hand."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.methods.mplus.blocks import Blocks, Place
from remanence.methods.mplus.longterm import Keeping, LongTerm

L = 2


def empty(capacity: int, merge: int, block_rows: int = 4) -> LongTerm:
    return LongTerm.empty(
        Keeping(capacity_rows=capacity, merge_rows=merge), Blocks(Place("float32"), L, 3, 2, block_rows)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(2, 4), st.lists(st.integers(1, 5), max_size=30), st.integers(0, 10**6))
def test_the_oldest_leave_and_the_capacity_is_never_exceeded(merge, times, sizes, seed):
    """Rows of any ages come; after a merge the youngest `capacity - merge` are left, and staged rows are all there."""
    capacity = merge * times + 5
    generator = torch.Generator().manual_seed(seed)
    long, clock = empty(capacity, merge), 0
    merged: list[list[int]] = [[] for _ in range(L)]
    staged: list[list[int]] = [[] for _ in range(L)]
    for size in sizes:
        clock += 100
        born_LN = torch.stack([clock - torch.randperm(400, generator=generator)[:size] for _ in range(L)])
        clock += 400
        long = long.stage(torch.randn(L, size, 3), torch.randn(L, size, 2), born_LN)
        for layer in range(L):
            staged[layer] += born_LN[layer].tolist()
            if len(staged[layer]) >= merge:
                merged[layer] = sorted([*merged[layer], *staged[layer]])[-(capacity - merge) :]
                staged[layer] = []
        for layer in range(L):
            born_M = long.blocks.born(layer)[long.alive(layer)]
            assert sorted(born_M.tolist()) == sorted([*merged[layer], *staged[layer]])
            assert len(born_M) <= capacity


def test_blocks_whose_rows_are_all_gone_are_given_back():
    long = empty(8, 4)
    for step in range(20):
        born_LN = torch.arange(4).expand(L, -1) + 4 * step
        long = long.stage(torch.randn(L, 4, 3), torch.randn(L, 4, 2), born_LN)
    assert long.blocks.num_rows <= 12


def test_a_value_that_was_kept_is_what_it_was():
    kept = empty(8, 4).stage(torch.ones(L, 3, 3), torch.ones(L, 3, 2), torch.zeros(L, 3, dtype=torch.long))
    later = kept
    for _ in range(10):
        later = later.stage(torch.zeros(L, 3, 3), torch.zeros(L, 3, 2), torch.ones(L, 3, dtype=torch.long))
    assert kept.blocks.num_rows == 3
    assert bool((kept.blocks.rows(0, torch.arange(3)) == 1).all())
