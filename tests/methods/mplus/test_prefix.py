"""Readings: padding, batches of pools, beams, and every way to choose rows."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

from remanence.errors import InputError
from remanence.lm.cache import roomy_cache
from remanence.lm.hidden_states import queries, rows_to_kv
from remanence.methods.mplus import rankers
from remanence.methods.mplus.blocks import rounded
from remanence.methods.mplus.int8_kv import Int8KV
from remanence.methods.mplus.prefetch import LayerPrefetch
from tests.methods.mplus.helpers import small, small_lm

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


def chosen(lm, method, pool, ranker) -> list[torch.Tensor]:
    prefix = method.prefix(lm, [pool], ranker=ranker)
    last(lm, [PROMPTS[1]], prefix)
    return [pool.long.blocks.born(layer)[prefix.chosen[layer][0]] for layer in range(lm.dims.num_layers)]


def test_the_most_recent_and_the_oracles_rows(lm):
    method = small(lm)
    pool, slots = pools(lm, method)[2], method.config.long_slots
    for layer, born in enumerate(chosen(lm, method, pool, rankers.recent)):
        alive = pool.long.blocks.born(layer)[pool.long.alive(layer)].sort().values
        assert born.tolist() == alive[-slots:].tolist()
    wanted = pool.long.blocks.born(0)[pool.long.alive(0)].sort().values[:3]
    born = chosen(lm, method, pool, rankers.oracle(lambda b: wanted))[0]
    assert set(wanted.tolist()) <= set(born.tolist())
    assert born.tolist() == sorted(born.tolist())


def test_rows_by_lot_and_by_attention_are_alive_and_different(lm):
    method = small(lm)
    pool = pools(lm, method)[2]
    for ranker in (rankers.at_random(1), rankers.attended):
        for layer, born in enumerate(chosen(lm, method, pool, ranker)):
            alive = set(pool.long.blocks.born(layer)[pool.long.alive(layer)].tolist())
            assert len(set(born.tolist())) == method.config.long_slots
            assert set(born.tolist()) <= alive


def test_rows_by_attention_are_those_with_the_most_of_it(lm):
    """Against a softmax over the keys and queries of position 0, row by row."""
    method = small(lm)
    pool = pools(lm, method)[2]
    hidden_BTC = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = rankers.attended(rankers.RankerInput(lm, method.modules(lm), 1, hidden_BTC, None), pool)[0]
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


def test_what_was_fetched_ahead_is_what_is_fetched_when_needed(lm):
    """One pool and one for each row."""
    method = small(lm)
    own = pools(lm, method)
    for given in (own[:1], own):
        plain, ahead = (method.prefix(lm, given) for _ in range(2))
        ahead.prefetch = True
        prompts = [PROMPTS[0]] * 3
        assert torch.equal(last(lm, prompts, plain), last(lm, prompts, ahead))


def test_the_next_layer_is_fetched_while_one_is_read():
    began = [threading.Event() for _ in range(3)]

    def fetch(layer: int) -> list[torch.Tensor]:
        began[layer].set()
        return [torch.tensor([layer])]

    rows = LayerPrefetch(fetch, 3, torch.device("cpu"))
    assert rows.take(0)[0].item() == 0
    assert began[1].wait(10), "nobody has asked for it yet"
    assert not began[2].is_set()
    assert [rows.take(1)[0].item(), rows.take(2)[0].item()] == [1, 2]


def test_a_prefix_that_was_fetched_ahead_is_gone_when_nobody_holds_it(lm):
    method = small(lm)
    prefix = method.prefix(lm, pools(lm, method)[2:])
    prefix.prefetch = True
    gc.disable()
    try:
        last(lm, PROMPTS[:1], prefix)
        held = weakref.ref(prefix)
        del prefix
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounded_vectors_are_within_half_a_step(dtype):
    vectors = torch.randn(200, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    code, scale = rounded(vectors)
    assert ((code * scale - vectors.float()).abs() <= scale * 0.501).all()
    assert int(code.abs().max()) == 127


def test_a_fetch_that_fails_is_an_error_where_its_layer_is_read():
    def fetch(layer: int) -> list[torch.Tensor]:
        if layer == 1:
            raise OSError("the disk is gone")
        return []

    rows = LayerPrefetch(fetch, 2, torch.device("cpu"))
    assert rows.take(0) == []
    with pytest.raises(OSError, match="the disk is gone"):
        rows.take(1)


def test_a_prefix_in_int8_is_near_and_the_same_for_all_tokens(lm):
    """Prefill and decoding see the same rounded keys and values, each within half a step of its vector's scale."""
    own = pools(lm, small(lm))[2]
    exact, coded = (small(lm, small_prefix=flag).prefix(lm, [own]) for flag in (False, True))
    whole = last(lm, PROMPTS[1:2], coded)
    assert torch.allclose(whole, last(lm, PROMPTS[1:2], exact), atol=0.05)
    near = exact(0, torch.empty(0))
    kv = Int8KV.of(near)
    for small_part, part in ((kv.kv.key_BGMD, near.key_BGMD), (kv.kv.value_BGMD, near.value_BGMD)):
        step = part.abs().amax(-1, keepdim=True) / 127
        assert ((small_part - part).abs() <= step / 2 + 1e-6).all()
    assert kv.key_BGMD.dtype == kv.value_BGMD.dtype == torch.int8
    cache, ids_BT = roomy_cache(lm.model), torch.tensor(PROMPTS[1:2])
    with torch.no_grad():
        for t in range(ids_BT.shape[1]):
            at = torch.tensor([[coded.offset_tokens + t]])
            step_BTV = lm.forward(ids_BT[:, t : t + 1], coded, at, None, cache, role="read")
    assert torch.allclose(step_BTV[:, -1], whole, atol=1e-4)
