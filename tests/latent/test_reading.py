"""Readings: padding, batches of pools, beams, and every way to choose rows."""

from __future__ import annotations

import pytest
import torch

from remanence.errors import InputError
from remanence.latent import reading
from remanence.lm.cache import roomy_cache
from remanence.lm.rows import queries, rows_to_kv
from tests.latent.helpers import small, small_lm

CHUNKS = [list(range(3, 3 + n)) for n in (9, 6, 24, 2, 13, 6, 17, 5, 8, 24, 3)]
PROMPTS = [[5, 9, 70], [33, 12, 8, 4, 60, 7], [90, 91]]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def lm(request):
    return small_lm(request.param)


def pools(lm, method):
    """Pools of different texts and lengths."""
    made = []
    for count in (4, 8, 11):
        pool = method.fresh(lm, seed=count)
        for ids in CHUNKS[:count]:
            pool = method.add(lm, pool, ids)
        made.append(pool)
    return made


def last(lm, prompts, prefix, mask_BT=None):
    ids_BT = torch.tensor(prompts)
    positions_BT = None
    if mask_BT is not None:
        positions_BT = prefix.offset_tokens + (mask_BT.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return lm.forward(ids_BT, prefix, positions_BT, mask_BT, role="read")[:, -1]


def test_a_padded_batch_of_sessions_is_each_session_alone(lm):
    method = small(lm)
    own = pools(lm, method)
    T = max(map(len, PROMPTS))
    padded = [[0] * (T - len(prompt)) + prompt for prompt in PROMPTS]
    mask_BT = torch.tensor([[0] * (T - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    together = last(lm, padded, method.prefix(lm, own, mask_BT), mask_BT)
    for b, prompt in enumerate(PROMPTS):
        alone = last(lm, [prompt], method.prefix(lm, [own[b]]))[0]
        assert torch.allclose(together[b], alone, atol=1e-4)


def test_slots_that_nothing_fills_are_seen_by_nobody(lm):
    """A pool with few long-term rows beside one with many, and an empty one, read as each alone."""
    method = small(lm)
    fresh = method.fresh(lm)
    once = method.add(lm, fresh, CHUNKS[0])
    own = [fresh, once, pools(lm, method)[2]]
    assert [min(p.long.blocks.num_rows, 12) for p in own] == [0, 6, 12]
    together = last(lm, [PROMPTS[0]] * 3, method.prefix(lm, own))
    for b, pool in enumerate(own):
        assert torch.allclose(together[b], last(lm, [PROMPTS[0]], method.prefix(lm, [pool]))[0], atol=1e-4)


def test_rows_of_one_pool_stand_together_for_beams(lm):
    method = small(lm)
    own = pools(lm, method)
    beams = last(lm, [PROMPTS[0], PROMPTS[0], PROMPTS[0][::-1], PROMPTS[0]], method.prefix(lm, own[:2]))
    assert torch.allclose(beams[1], last(lm, [PROMPTS[0]], method.prefix(lm, own[:1]))[0], atol=1e-4)
    assert torch.allclose(beams[3], last(lm, [PROMPTS[0]], method.prefix(lm, own[1:2]))[0], atol=1e-4)
    with pytest.raises(InputError, match="2 pools"):
        last(lm, [PROMPTS[0]] * 3, method.prefix(lm, own[:2]))


def test_with_and_without_a_cache_the_same_text(lm):
    """What a prompt has read stays, also where every token runs the whole text again."""
    method = small(lm)
    pool = pools(lm, method)[2]
    prefix = method.prefix(lm, [pool])
    ids = list(PROMPTS[1])
    for _ in range(5):
        ids.append(int(last(lm, [ids], prefix)[0].argmax()))
    again, cached = method.prefix(lm, [pool]), list(PROMPTS[1])
    cache, fed = roomy_cache(lm.model), torch.tensor([cached])
    for _ in range(5):
        with torch.no_grad():
            cached.append(int(lm.forward(fed, again, cache=cache, role="read")[0, -1].argmax()))
        fed = torch.tensor([cached[-1:]])
    assert ids == cached


def chosen(lm, method, pool, choice) -> list[torch.Tensor]:
    prefix = method.prefix(lm, [pool], choice=choice)
    last(lm, [PROMPTS[1]], prefix)
    return [pool.long.blocks.born(layer)[prefix.chosen[layer][0]] for layer in range(lm.dims.num_layers)]


def test_the_most_recent_and_the_oracles_rows(lm):
    method = small(lm)
    pool, slots = pools(lm, method)[2], method.config.long_slots
    for layer, born in enumerate(chosen(lm, method, pool, reading.recent)):
        alive = pool.long.blocks.born(layer)[pool.long.alive(layer)].sort().values
        assert born.tolist() == alive[-slots:].tolist()
    wanted = pool.long.blocks.born(0)[pool.long.alive(0)].sort().values[:3]
    born = chosen(lm, method, pool, reading.oracle(lambda b: wanted))[0]
    assert set(wanted.tolist()) <= set(born.tolist())
    assert born.tolist() == sorted(born.tolist())


def test_rows_by_lot_and_by_attention_are_alive_and_different(lm):
    method = small(lm)
    pool = pools(lm, method)[2]
    for choice in (reading.at_random(1), reading.attended):
        for layer, born in enumerate(chosen(lm, method, pool, choice)):
            alive = set(pool.long.blocks.born(layer)[pool.long.alive(layer)].tolist())
            assert len(set(born.tolist())) == method.config.long_slots
            assert set(born.tolist()) <= alive


def test_rows_by_attention_are_those_with_the_most_of_it(lm):
    """Against a softmax over the keys and queries of position 0, row by row."""
    method = small(lm)
    pool = pools(lm, method)[2]
    hidden_BTC = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = reading.attended(reading.Asked(lm, method.modules(lm), 1, hidden_BTC, None), pool)[0]
        still = torch.zeros(4, dtype=torch.long)
        query_HTD = queries(lm.model, 1, hidden_BTC, still, "read")[0]
        row_NC = pool.long.blocks.rows(1, torch.arange(pool.long.blocks.num_rows))
        key = [rows_to_kv(lm.model, 1, row[None, None], still[:1], "read").key_BGMD[0, :, 0] for row in row_NC]
        total = torch.zeros(len(row_NC))
        for head in range(4):
            for t in range(4):
                score = torch.stack([query_HTD[head, t] @ k[head // 2] for k in key]) / 16**0.5
                total += score.softmax(0) / 16
    assert torch.allclose(found, total, atol=1e-5)
