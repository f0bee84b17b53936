"""A pool in step with texts: whatever was added and forgotten, it is the pool that has read what is left."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remanence.methods.mplus.bank_pool import empty_history, follow, group_chunks, reading_order
from remanence.methods.mplus.pool import PoolHistory
from remanence.types import Chunk
from tests.methods.mplus.helpers import small, small_lm
from tests.methods.mplus.test_pool_file import equal

LM = small_lm()
METHOD = small(LM)
TEXTS = ["Ada owns a cat.", "Bo.", "The door code is 4417.", "Cy sings.", "x", "No more than that.", "Dee sells tea."]


def chunk(number: int, source: str = "", created: float | None = None, start: int = 0) -> Chunk:
    text = TEXTS[number % len(TEXTS)]
    return Chunk(
        f"{number:016x}", "default", text, len(text), source, start, start + len(text), created or number + 1.0
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 11)), max_size=10))
def test_forgetting_leaves_the_pool_that_never_read_it(steps):
    """Bit for bit the pool of a session that was only ever given what is left, long-term memory too."""
    history, left = empty_history(LM, METHOD), {}
    for adds, number in steps:
        if adds:
            left[number] = chunk(number)
        else:
            left.pop(number, None)
        history = follow(LM, METHOD, history, list(left.values()))
    assert equal(history.pool, follow(LM, METHOD, empty_history(LM, METHOD), list(left.values())).pool)
    assert [id for write in history.writes for id in write.ids] == [c.id for c in reading_order(list(left.values()))]


def test_only_what_follows_a_forgotten_text_is_read_again(monkeypatch):
    chunks = [chunk(n) for n in range(70)]
    history = follow(LM, METHOD, empty_history(LM, METHOD), chunks)
    progress: list[int] = []
    follow(LM, METHOD, history, [*chunks[:66], *chunks[67:]], progress.append)
    assert sum(progress) == 69 - 64
    progress.clear()
    assert follow(LM, METHOD, history, chunks, progress.append) is history
    assert not progress


def test_short_chunks_of_one_commit_are_written_together():
    three = [chunk(n, "a.txt", 5.0 + n * 1e-6, start) for n, start in ((0, 0), (1, 20), (2, 40))]
    assert [[c.start for c in group] for group in group_chunks(LM, three, 4, 24)] == [[0, 20], [40]]
    assert len(group_chunks(LM, [chunk(1), chunk(4)], 4, 24)) == 2, "texts of different commits stay apart"
    assert len(group_chunks(LM, three, 4, 15)) == 3, "what does not fit stays apart"


def test_a_row_leads_to_the_text_it_came_from():
    chunks = [chunk(n) for n in (0, 2, 3)]
    history: PoolHistory = follow(LM, METHOD, empty_history(LM, METHOD), chunks)
    K = METHOD.config.write_rows
    born = torch.tensor([1, 2 * K, 0, -3, 3 * K])
    assert history.write_of(born).tolist() == [0, 1, -1, -1, 2]
    assert history.writes[1].ids == (chunks[1].id,)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_pool(seed):
    chunks = [chunk(n) for n in (0, 2, 3, 5, 6)]
    one, other = (follow(LM, METHOD, empty_history(LM, METHOD, s), chunks).pool for s in (seed, 0))
    assert torch.equal(one.row_LNC, other.row_LNC) == (seed == 0)
