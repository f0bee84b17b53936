"""The seam itself: what it leaves alone, what it masks, and where it must keep working (compile, checkpointing)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from remanence.errors import UnsupportedModel
from remanence.lm import attention
from remanence.lm.cache import cache_keyword
from remanence.lm.capture import capture
from remanence.lm.proof import prove
from remanence.lm.tiny import tiny_model
from remanence.types import KV, LayerPrefix
from tests.lm.families import backends, build
from tests.lm.in_context import logits_in_context

EXACT = 2e-5
"""float32, TinyLM: largest difference of logits, whose largest is about 3."""

BACKENDS = ("eager", "sdpa")


def ids(num_tokens: int, seed: int = 0, rows: int = 1) -> Tensor:
    return torch.randint(3, 259, (rows, num_tokens), generator=torch.Generator().manual_seed(seed))


def memory_of(model: PreTrainedModel, ids_BT: Tensor) -> LayerPrefix:
    with torch.no_grad():
        seen = capture(model, ids_BT, frozenset(range(model.config.num_hidden_layers)))
    return LayerPrefix(tuple(KV(shown.key_BGSD, shown.value_BGSD) for _, shown in sorted(seen.items())))


def random_memory(rows: int, num_tokens: int, seed: int = 0, num_layers: int = 2) -> LayerPrefix:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 2, num_tokens, 16)
    return LayerPrefix(
        tuple(
            KV(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
            for _ in range(num_layers)
        )
    )


def logits(model: PreTrainedModel, ids_BT: Tensor, memory: LayerPrefix | None, start: int = 9) -> Tensor:
    positions_BT = start + torch.arange(ids_BT.shape[1])[None]
    with torch.no_grad():
        return model(ids_BT, position_ids=positions_BT, use_cache=False, memory=memory).logits


# -- prepare -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_prepare_twice_is_once(backend: str) -> None:
    model = tiny_model(backend=backend)
    hooks = [len(m._forward_pre_hooks) for m in attention.attention_modules(attention.prepare(model)).values()]
    assert attention.prepare(model) is model
    assert [len(m._forward_pre_hooks) for m in attention.attention_modules(model).values()] == hooks == [1, 1]


@pytest.mark.parametrize("backend", ["flash_attention_2", "flex_attention", "paged|sdpa"])
def test_a_backend_that_cannot_mask_memory_is_refused_by_name(backend: str) -> None:
    model = tiny_model()
    model.config._attn_implementation = backend
    with pytest.raises(UnsupportedModel, match=r"sdpa.*eager") as caught:
        attention.prepare(model)
    assert backend in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_causal_mask_survives_registration(backend: str) -> None:
    """A name without its mask function would let tokens see what follows them."""
    model = attention.prepare(tiny_model(backend=backend))
    text_BT = ids(12)
    longer = logits(model, text_BT, random_memory(1, 5))[:, :6]
    torch.testing.assert_close(logits(model, text_BT[:, :6], random_memory(1, 5)), longer, rtol=0, atol=EXACT)


def test_a_memory_of_none_in_every_layer_is_no_memory() -> None:
    model = attention.prepare(tiny_model())
    assert torch.equal(logits(model, ids(7), LayerPrefix((None, None))), logits(model, ids(7), None))


def test_two_models_with_different_backends_live_side_by_side() -> None:
    one, other = attention.prepare(tiny_model(backend="eager")), attention.prepare(tiny_model(backend="sdpa"))
    memory = random_memory(1, 5)
    difference = (logits(one, ids(7), memory) - logits(other, ids(7), memory)).abs().max()
    assert difference <= EXACT


# -- masks and caches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first_step", [1, 3, 6])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_prefill_in_pieces_equals_one_pass(kind: str, first_step: int, backend: str) -> None:
    """An empty static cache gets no mask from transformers 5.23, and SDPA's own causal mask is upper-left."""
    model = attention.prepare(tiny_model(backend=backend))
    memory, text_BT = memory_of(model, ids(9)), ids(6, seed=1)
    one_pass = logits(model, text_BT, memory)
    caches = {"dynamic": lambda: DynamicCache(config=model.config), "static": lambda: StaticCache(model.config, 16)}
    cache, pieces = caches[kind](), []
    for start, end in ((0, first_step), (first_step, 6)):
        if start == end:
            continue
        with torch.no_grad():
            output = model(
                text_BT[:, start:end],
                position_ids=9 + torch.arange(start, end)[None],
                **{cache_keyword(model): cache},
                use_cache=True,
                memory=memory,
            )
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), one_pass, rtol=0, atol=EXACT)
    assert cache.get_seq_length() == 6  # memory never enters the cache


@pytest.mark.parametrize("pieces", [[20], [20, *[1] * 6], [1] * 26], ids=["one pass", "steps", "steps from the first"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gpt_oss"])
def test_memory_stays_visible_behind_a_sliding_window(name: str, kind: str, pieces: list[int]) -> None:
    """Text that left the window is gone, memory is not: it is no part of the text that slides."""
    model = build(name, backends(name)[-1], sliding_window=16)
    first_BM, second_BT = ids(9) % 128, ids(sum(pieces), seed=1) % 128
    types = getattr(model.config, "layer_types", None) or ["sliding_attention"] * 3
    windows = {layer: 16 for layer, kind_ in enumerate(types) if kind_ == "sliding_attention"}
    assert windows
    truth_BTV = logits_in_context(model, first_BM, second_BT, torch.ones(3, 1, second_BT.shape[1], 9).bool(), windows)
    memory = memory_of(attention.prepare(model), first_BM)
    cache = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, 40)
    logits_, start = [], 0
    for length in pieces:
        with torch.no_grad():
            output = model(
                second_BT[:, start : start + length],
                position_ids=9 + torch.arange(start, start + length)[None],
                **{cache_keyword(model): cache},
                use_cache=True,
                memory=memory,
            )
        logits_.append(output.logits)
        start += length
    torch.testing.assert_close(torch.cat(logits_, 1), truth_BTV, rtol=0, atol=EXACT)


def test_a_window_shorter_than_memory_is_refused_where_it_is_proved() -> None:
    """What a family's window hides in context, memory would show: prove says so rather than guess."""
    with pytest.raises(UnsupportedModel, match=r"'mistral'.*logits differ"):
        prove(attention.prepare(build("mistral", sliding_window=4)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_columns_do_not_exist(backend: str) -> None:
    model = attention.prepare(tiny_model(backend=backend))
    whole = random_memory(1, 8)
    hidden = torch.ones(1, 6, 8, dtype=torch.bool)
    hidden[..., 3:] = False
    cut = LayerPrefix(tuple(KV(kv.key_BGMD[:, :, :3], kv.value_BGMD[:, :, :3]) for kv in whole.kvs if kv))
    masked = LayerPrefix(tuple(KV(kv.key_BGMD, kv.value_BGMD, hidden) for kv in whole.kvs if kv))
    torch.testing.assert_close(logits(model, ids(6), masked), logits(model, ids(6), cut), rtol=0, atol=EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_token_may_not_see_changes_nothing_before_it(backend: str) -> None:
    model = attention.prepare(tiny_model(backend=backend))
    one, other = random_memory(1, 8, seed=0), random_memory(1, 8, seed=1)
    visible = torch.zeros(1, 6, 8, dtype=torch.bool)
    visible[:, 4:] = True  # the last two tokens see memory
    results = [
        logits(model, ids(6), LayerPrefix(tuple(KV(kv.key_BGMD, kv.value_BGMD, visible) for kv in memory.kvs if kv)))
        for memory in (one, other)
    ]
    torch.testing.assert_close(results[0][:, :4], logits(model, ids(6), None)[:, :4], rtol=0, atol=EXACT)
    assert torch.equal(results[0][:, :4], results[1][:, :4])
    assert not torch.allclose(results[0][:, 4:], results[1][:, 4:], atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_with_their_own_memories_equal_single_rows(backend: str) -> None:
    model = attention.prepare(tiny_model(backend=backend))
    text_BT, memory = ids(7, rows=3), random_memory(3, 5)
    together = logits(model, text_BT, memory)
    for row in range(3):
        own = LayerPrefix(
            tuple(KV(kv.key_BGMD[row : row + 1], kv.value_BGMD[row : row + 1]) for kv in memory.kvs if kv)
        )
        alone = logits(model, text_BT[row : row + 1], own)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_memory_serves_all_rows(backend: str) -> None:
    model = attention.prepare(tiny_model(backend=backend))
    memory = random_memory(1, 5)
    repeated = LayerPrefix(
        tuple(KV(kv.key_BGMD.repeat(3, 1, 1, 1), kv.value_BGMD.repeat(3, 1, 1, 1)) for kv in memory.kvs if kv)
    )
    together = logits(model, ids(7, rows=3), memory)
    assert torch.equal(together, logits(model, ids(7, rows=3), repeated))


def test_memory_of_another_dtype_is_cast_to_the_text() -> None:
    model = attention.prepare(tiny_model())
    memory = random_memory(1, 5)
    stored = LayerPrefix(tuple(KV(kv.key_BGMD.bfloat16(), kv.value_BGMD.bfloat16()) for kv in memory.kvs if kv))
    difference = (logits(model, ids(7), stored) - logits(model, ids(7), memory)).abs().max()
    assert 0 < difference < 0.1


# -- watching ------------------------------------------------------------------------------------------------


def test_a_watch_shows_what_attention_works_with_and_stops() -> None:
    model = attention.prepare(tiny_model(num_layers=3))
    watch = attention.AttentionCapture(frozenset([0, 1]), stop=True)
    with pytest.raises(attention.StopForward), torch.no_grad():
        model(ids(7), use_cache=False, watch=watch)
    assert sorted(watch.seen) == sorted(watch.hidden) == [0, 1]
    hidden_BTC = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids(7)))
    torch.testing.assert_close(watch.hidden[0], hidden_BTC)
    value_BGTD = model.model.layers[0].self_attn.v_proj(hidden_BTC).unflatten(-1, (2, 16)).transpose(1, 2)
    torch.testing.assert_close(watch.seen[0].value_BGSD, value_BGTD)
    assert watch.seen[0].pre_rope_query_BHTD is None
    assert watch.seen[0].scaling == 0.25


def test_a_prefix_is_given_what_its_layer_is_given() -> None:
    model, given = attention.prepare(tiny_model()), {}

    class Asks(LayerPrefix):
        def __call__(self, layer: int, hidden_BTC: Tensor) -> KV | None:
            given[layer] = hidden_BTC
            return None

    logits(model, ids(7), Asks((None, None)))
    watch = attention.AttentionCapture(frozenset([0, 1]))
    with torch.no_grad():
        model(ids(7), position_ids=9 + torch.arange(7)[None], use_cache=False, watch=watch)
    assert torch.equal(given[0], watch.hidden[0])
    assert torch.equal(given[1], watch.hidden[1])


def test_watching_changes_no_logits() -> None:
    model = attention.prepare(tiny_model())
    with torch.no_grad():
        watched = model(
            ids(7), use_cache=False, watch=attention.AttentionCapture(frozenset([0, 1]), pre_rope=True)
        ).logits
        assert torch.equal(watched, model(ids(7), use_cache=False).logits)


def test_a_watch_leaves_a_cache_alone() -> None:
    """The queries before RoPE come from a second call of the module, which must not fill the cache twice."""
    model, cache = attention.prepare(tiny_model()), DynamicCache()
    with torch.no_grad():
        model(
            ids(7),
            **{cache_keyword(model): cache},
            use_cache=True,
            watch=attention.AttentionCapture(frozenset([0, 1]), pre_rope=True),
        )
    assert cache.get_seq_length() == 7


# -- gradients, compile, generate ----------------------------------------------------------------------------


def gradients(*, checkpoint: bool) -> list[Tensor]:
    """Gradients into memory and into the weights, from reading and from writing."""
    model = attention.prepare(tiny_model(num_layers=3)).train()
    if checkpoint:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    seen = capture(model, ids(9), frozenset([0, 1, 2]), pre_rope=True)
    written = [(shown.key_BGSD, shown.value_BGSD) for _, shown in sorted(seen.items())]
    for tensor in (tensor for pair in written for tensor in pair):
        tensor.retain_grad()
    memory = LayerPrefix(tuple(KV(key, value) for key, value in written))
    text_BT = ids(7, seed=1)
    positions_BT = 9 + torch.arange(7)[None]
    model(text_BT, position_ids=positions_BT, use_cache=False, memory=memory, labels=text_BT).loss.backward()
    into_memory = [tensor.grad for pair in written for tensor in pair]
    return [grad for grad in [*into_memory, *(p.grad for p in model.parameters())] if grad is not None]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # its new name is not in older versions
def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    plain, checkpointed = gradients(checkpoint=False), gradients(checkpoint=True)
    assert len(plain) == len(checkpointed) == 6 + len(list(tiny_model(num_layers=3).parameters()))
    assert all(float(grad.abs().max()) > 0 for grad in plain)
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def test_writing_has_the_gradient_of_having_the_text_in_context() -> None:
    model = attention.prepare(tiny_model(num_layers=3))
    both_BT = ids(16)
    seen = capture(model, both_BT[:, :9], frozenset([0, 1, 2]))
    memory = LayerPrefix(tuple(KV(shown.key_BGSD, shown.value_BGSD) for _, shown in sorted(seen.items())))
    model(
        both_BT[:, 9:], position_ids=9 + torch.arange(7)[None], use_cache=False, memory=memory
    ).logits.square().mean().backward()
    through_memory = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(both_BT, use_cache=False).logits[:, 9:].square().mean().backward()
    for one, p in zip(through_memory, model.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo on older versions
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_in_one_graph(backend: str) -> None:
    model = attention.prepare(tiny_model(backend=backend))
    memory = memory_of(model, ids(9))
    visible = torch.ones(1, 7, 9, dtype=torch.bool).tril()
    chunked = LayerPrefix(tuple(KV(kv.key_BGMD, kv.value_BGMD, visible) for kv in memory.kvs if kv))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for prefix in (memory, chunked):
        torch.testing.assert_close(logits(compiled, ids(7), prefix), logits(model, ids(7), prefix), rtol=0, atol=EXACT)
    torch._dynamo.reset()


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt_oss"])
def test_generate_of_transformers_reads_memory(name: str, implementation: str) -> None:
    """`model.generate` after a memory of A equals `model.generate` with A in the prompt, for rows of two lengths."""
    model = attention.prepare(build(name, "eager"))
    all_BT = torch.randint(3, 128, (2, 15), generator=torch.Generator().manual_seed(3))
    memory = memory_of(model, all_BT[:1, :9])
    memory = LayerPrefix(memory.kvs, offset_tokens=9)
    all_BT[1, :9] = all_BT[0, :9]
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    settings |= {"output_logits": True, "return_dict_in_generate": True, "cache_implementation": implementation}
    mask_BT = torch.ones(2, 6, dtype=torch.long)
    mask_BT[1, :2] = 0
    with_memory = model.generate(all_BT[:, 9:] * mask_BT, attention_mask=mask_BT, memory=memory, **settings)
    for row, text_BT in enumerate((all_BT[:1], torch.cat([all_BT[1:, :9], all_BT[1:, 11:]], dim=1))):
        in_context = model.generate(text_BT, attention_mask=torch.ones_like(text_BT), **settings)
        answer = with_memory.sequences[row, 6:]
        assert answer.tolist() == in_context.sequences[0, text_BT.shape[1] :].tolist()
        ours, theirs = (torch.stack(found.logits, dim=1) for found in (with_memory, in_context))
        torch.testing.assert_close(ours[row : row + 1], theirs, rtol=0, atol=EXACT)


def test_generate_still_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="memroy"):
        attention.prepare(tiny_model()).generate(ids(4), max_new_tokens=1, memroy=object())


def test_a_copy_of_a_model_generates_with_its_own_weights() -> None:
    model = attention.prepare(tiny_model())
    other = copy.deepcopy(model)
    assert other.prepare_inputs_for_generation.own.__self__ is other
