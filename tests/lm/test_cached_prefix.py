"""Memory in the cache gives the logits that memory through the seam gives, and steps aside where it cannot."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from remanence.lm import attention
from remanence.lm import lm as loading
from remanence.lm.cache import cache_keyword, roomy_cache
from remanence.lm.cached_prefix import CachedPrefix
from remanence.lm.capture import capture
from remanence.lm.decode import decode
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.types import KV, LayerPrefix
from tests.lm.families import FAMILIES, NUM_LAYERS, backends, build


@pytest.fixture(scope="module")
def lm() -> loading.LM:
    return loading.LM(tiny_model(num_layers=3), byte_tokenizer(), "three layers")


def prefix_of(widths: tuple[int | None, ...], seed: int, visible: torch.Tensor | None = None) -> LayerPrefix:
    torch.manual_seed(seed)
    kvs = [None if M is None else KV(torch.randn(1, 2, M, 16), torch.randn(1, 2, M, 16), visible) for M in widths]
    return LayerPrefix(tuple(kvs), offset_tokens=40, refresh_tokens=3)


def logits_by(lm: loading.LM, prefixes: list[LayerPrefix | None], resident: bool) -> torch.Tensor:
    """Logits of six tokens after a prompt, memory changed after every second one."""
    cache = roomy_cache(lm.model) if resident else DynamicCache(config=lm.model.config)
    found = []
    with torch.inference_mode():
        lm.forward(torch.tensor([[5, 6, 7]]), prefixes[0], 40 + torch.arange(3)[None], None, cache)
        place = CachedPrefix(lm.model, cache, padded=False).place if resident else lambda prefix: prefix
        for step in range(6):
            if step % 2 == 0:
                memory = place(prefixes[step // 2])
                assert not resident or memory is None or memory.kvs[0].visible_BTM is not None
            found.append(lm.forward(torch.tensor([[8 + step]]), memory, torch.tensor([[43 + step]]), None, cache))
    return torch.cat(found)


@pytest.mark.parametrize("widths", [(4, 4, 4), (9, 2, None), (None, None, 3)])
def test_the_same_logits_as_through_the_seam(lm, widths):
    prefixes = [prefix_of(widths, seed=0), prefix_of(widths[::-1], seed=1), LayerPrefix((None, None, None), 40)]
    torch.testing.assert_close(logits_by(lm, prefixes, True), logits_by(lm, prefixes, False))


def test_memory_that_not_all_may_see_goes_through_the_seam_again(lm):
    hidden = torch.tensor([[[True, False, True, True]]])
    prefixes = [prefix_of((4, 4, 4), 0), prefix_of((4, 4, 4), 1, hidden), prefix_of((4, 4, 4), 2)]
    torch.testing.assert_close(logits_by(lm, prefixes, True), logits_by(lm, prefixes, False))


@pytest.mark.parametrize("batch", [1, 2])
def test_decoding_is_the_same_with_and_without_it(lm, monkeypatch, batch):
    prefix, other = prefix_of((5, 3, 3), 0), prefix_of((2, 7, 3), 1)
    prompts = [lm.encode(text) for text in ("Where is it?", "Who was it?!")][:batch]

    def answers() -> list[list[int]]:
        for rows in decode(lm, prompts, prefix, refresh=lambda rows: other, max_tokens=9):
            found = [row.ids for row in rows]
        return found

    used: list[bool] = []
    place = CachedPrefix.place
    monkeypatch.setattr(CachedPrefix, "place", lambda self, p: used.append(r := place(self, p)) or r)
    inside = answers()
    assert used == [None] * len(used)
    assert len(used) >= 3
    monkeypatch.setattr(CachedPrefix, "place", lambda self, p: p)
    assert answers() == inside


def test_padding_eager_attention_and_sliding_windows_keep_to_the_seam(lm):
    cache = roomy_cache(lm.model)
    prefix = prefix_of((4, 4, 4), 0)
    assert CachedPrefix(lm.model, cache, padded=True).place(prefix) is prefix
    eager = loading.LM(tiny_model(backend="eager"), byte_tokenizer(), "eager")
    assert CachedPrefix(eager.model, cache, padded=False).place(prefix) is prefix
    assert CachedPrefix(lm.model, cache, padded=False).place(None) is None


@pytest.mark.parametrize("name", [name for name in FAMILIES if "sdpa" in backends(name)])
def test_every_family_gives_the_same_logits(name):
    model = attention.prepare(build(name))
    ids = torch.randint(3, 128, (1, 16), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        seen = capture(model, ids[:, :6], frozenset(range(NUM_LAYERS)))
        kvs = [KV(s.key_BGSD[:, :, i:], s.value_BGSD[:, :, i:]) for i, s in sorted(seen.items())]
        prefix, found = LayerPrefix(tuple(kvs), 6), []
        for is_resident in (True, False):
            cache = roomy_cache(model) if is_resident else DynamicCache(config=model.config)
            model(ids[:, 6:10], position_ids=6 + torch.arange(4)[None], **{cache_keyword(model): cache}, memory=prefix)
            memory = CachedPrefix(model, cache, padded=False).place(prefix) if is_resident else prefix
            for step in range(10, 16):
                extra = {} if memory is None else {"memory": memory}
                positions = torch.tensor([[step]])
                out = model(ids[:, step : step + 1], position_ids=positions, **{cache_keyword(model): cache}, **extra)
                found.append(out.logits)
    torch.testing.assert_close(torch.cat(found[:6]), torch.cat(found[6:]))
