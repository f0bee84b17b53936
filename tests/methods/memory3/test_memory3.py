"""Memory³ in one masked pass against its oracle and against the plain model (T1 to T6 of the paper's page)."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from remanence.errors import InputError
from remanence.lm import attention
from remanence.lm.decode import decode
from remanence.lm.lm import LM
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.methods.base import Prompt, Reading
from remanence.methods.memory3.method import (
    Group,
    Memory3,
    Memory3Config,
    attention_received,
    dense,
    paper,
    select,
)
from remanence.types import ExplicitMemory, Prefix
from tests.lm.families import FAMILIES, backends, build
from tests.methods.helpers import Recalls, run
from tests.reference import memory3 as oracle
from tests.reference.decoder import Decoder

EXACT = 1e-5
"""Largest difference of logits (float64 weights; norms and angles are float32), as a part of the largest logit."""

CHUNK, REFERENCE, KEPT = 8, 24, 4


@cache
def make_lm(name: str = "tiny", dtype: torch.dtype | None = None) -> LM:
    model = tiny_model(num_layers=4) if name == "tiny" else build(name, backends(name)[-1], vocab_size=259)
    exact = torch.float64 if name in ("tiny", "qwen3") else torch.float32  # the oracle is for these two
    return LM(model.to(dtype or exact), byte_tokenizer(), name)


def small(lm: LM, **changes: object) -> Memory3:
    """The paper's preset with chunks, references and memories of a few tokens."""
    sizes = {"chunk_tokens": CHUNK, "reference_tokens": REFERENCE, "kept_tokens": KEPT, **changes}
    return Memory3(replace(paper(lm), **sizes))


def whole(lm: LM, num_tokens: int) -> Memory3:
    """Every layer, every token, references as long as their interval: nothing is left out."""
    layers = tuple(range(lm.dims.num_layers))
    return Memory3(Memory3Config(layers, kept_tokens=None, reference_tokens=num_tokens))


def tokens(num_tokens: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 259) for _ in range(num_tokens)]


def references(number: int, seed: int = 0, num_tokens: int = REFERENCE) -> list[list[int]]:
    return [tokens(num_tokens, 1000 + 31 * seed + i) for i in range(number)]


def difference(one: Tensor, other: Tensor) -> float:
    return float(((one - other).abs().max() / other.abs().max()).detach())


@torch.no_grad()
def read(lm: LM, method: Memory3, prompt: list[int], groups: list[Group]) -> Tensor:
    """Logits (T, V) of one prompt in one masked pass."""
    return lm.forward(torch.tensor([prompt]), method.prefix(lm, [groups], [len(prompt)]))[0]


def in_chunks(lm: LM, method: Memory3, chunks: list[list[list[int]]]) -> list[Group]:
    """Groups whose first covers `<s>` and the first chunk (§3.1)."""
    starts = [0, *(1 + method.config.chunk_tokens * i for i in range(1, len(chunks)))]
    return [Group(start, tuple(method.write(lm, refs))) for start, refs in zip(starts, chunks, strict=True)]


def by_the_oracle(lm: LM, method: Memory3, prompt: list[int], chunks: list[list[list[int]]]) -> Tensor:
    """The same prompt token by token; chunk i's tokens see the memories of chunks[i]."""
    decoder, prefix, config = Decoder(lm.model), method.prefix_ids(lm), method.config
    seen = [
        [
            oracle.place(
                decoder,
                oracle.write(decoder, prefix, ref, config.memory_layers, config.kept_tokens, config.selection),
                len(prefix),
            )
            for ref in refs
        ]
        for refs in chunks
    ]
    by_token = [seen[max(0, t - 1) // config.chunk_tokens] for t in range(len(prompt))]
    return oracle.read(decoder, prefix, prompt, by_token, len(prefix) + config.reference_tokens)


PROMPT = [1, *tokens(21, seed=5)]  # <s>, two chunks and five tokens of a third
CHUNKS = [references(2, seed=1), references(3, seed=2), references(1, seed=3)]


# -- T1 to T6 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["softmax", "exp"])
@pytest.mark.parametrize("name", ["tiny", "qwen3"])
def test_t1_one_masked_pass_equals_token_by_token(name: str, selection: str) -> None:
    lm = make_lm(name)
    method = small(lm, selection=selection)
    logits_TV = read(lm, method, PROMPT, in_chunks(lm, method, CHUNKS))
    assert difference(logits_TV, by_the_oracle(lm, method, PROMPT, CHUNKS)) <= EXACT


def test_t1_at_the_papers_sizes() -> None:
    lm = make_lm()
    method = Memory3(paper(lm))
    prompt = [1, *tokens(70, seed=5)]  # a chunk of 64, and six tokens of a second with five other memories
    refs = [references(5, num_tokens=128), references(5, seed=6, num_tokens=128)]
    logits_TV = read(lm, method, prompt, in_chunks(lm, method, refs))
    assert difference(logits_TV, by_the_oracle(lm, method, prompt, refs)) <= EXACT


def test_t1_rows_of_a_padded_batch_equal_the_oracle() -> None:
    lm = make_lm()
    method = small(lm)
    prompts = [PROMPT, [1, *tokens(6, seed=8)], [1, *tokens(11, seed=9)]]
    chunks = [CHUNKS, [references(1, seed=7)], [[], references(2, seed=4)]]
    groups = [in_chunks(lm, method, refs) for refs in chunks]
    prefix = method.prefix(lm, groups, [len(prompt) for prompt in prompts])
    longest = len(PROMPT)
    ids_BT = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions_BT = prefix.offset_tokens + (mask_BT.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits_BTV = lm.forward(ids_BT, prefix, positions_BT, mask_BT)
    for row, prompt, refs in zip(logits_BTV, prompts, chunks, strict=True):
        assert difference(row[longest - len(prompt) :], by_the_oracle(lm, method, prompt, refs)) <= EXACT


@pytest.mark.parametrize("name", ["tiny", "gemma3_text"])
@torch.no_grad()
def test_t1_chunk_by_chunk_with_a_cache_equals_one_pass(name: str) -> None:
    lm = make_lm(name)
    method, cache_ = small(lm), DynamicCache(config=lm.model.config)
    groups = in_chunks(lm, method, CHUNKS)
    pieces, ends = [], [*(group.start for group in groups[1:]), len(PROMPT)]
    for group, end in zip(groups, ends, strict=True):
        ids_BT = torch.tensor([PROMPT[group.start : end]])
        prefix = method.prefix(lm, [[Group(0, group.memories)]], [ids_BT.shape[1]])
        pieces.append(lm.forward(ids_BT, prefix, cache=cache_)[0])
    assert difference(torch.cat(pieces), read(lm, method, PROMPT, groups)) <= EXACT


@pytest.mark.parametrize("name", ["tiny", "gemma3_text", "gpt_oss"])
def test_t2_the_order_of_memories_does_not_matter(name: str) -> None:
    lm = make_lm(name)
    method = small(lm)
    groups = in_chunks(lm, method, CHUNKS)
    turned = [Group(group.start, group.memories[::-1]) for group in groups]
    assert difference(read(lm, method, PROMPT, turned), read(lm, method, PROMPT, groups)) <= EXACT


def test_t3_memories_matter_and_which_matters_too() -> None:
    lm = make_lm()
    method = small(lm)
    with_memory = read(lm, method, PROMPT, in_chunks(lm, method, CHUNKS))
    none = read(lm, method, PROMPT, in_chunks(lm, method, [[], [], []]))
    others = read(lm, method, PROMPT, in_chunks(lm, method, CHUNKS[::-1]))
    assert difference(with_memory, none) > 0.01
    assert difference(with_memory, others) > 0.01


@pytest.mark.parametrize("name", ["tiny", *FAMILIES])
@torch.no_grad()
def test_t4_all_of_one_reference_equals_the_plain_model(name: str) -> None:
    lm, reference = make_lm(name), tokens(REFERENCE, seed=3)
    method = whole(lm, REFERENCE)
    with_memory = read(lm, method, PROMPT, [Group(0, tuple(method.write(lm, [reference])))])
    text = [*method.prefix_ids(lm), *reference, *PROMPT]
    assert difference(with_memory, lm.forward(torch.tensor([text]))[0, -len(PROMPT) :]) <= EXACT


@pytest.mark.parametrize("num_tokens", [REFERENCE, 7])
@torch.no_grad()
def test_t4_the_dense_preset_equals_the_plain_model(num_tokens: int) -> None:
    """Also for references of any length: their positions are consecutive."""
    lm, reference = make_lm(), tokens(num_tokens, seed=3)
    method = Memory3(dense(lm))
    with_memory = read(lm, method, PROMPT, [Group(0, tuple(method.write(lm, [reference])))])
    text = [*method.prefix_ids(lm), *reference, *PROMPT]
    assert difference(with_memory, lm.forward(torch.tensor([text]))[0, -len(PROMPT) :]) <= EXACT


@pytest.mark.parametrize("name", ["tiny", "qwen3"])
def test_t4_dense_memories_stand_one_after_the_other(name: str) -> None:
    """Two references with their keys rotated to where their text would stand, by the oracle."""
    lm = make_lm(name)
    method, refs = Memory3(dense(lm)), [tokens(13, seed=1), tokens(17, seed=2)]
    with_memory = read(lm, method, PROMPT, [Group(0, tuple(method.write(lm, refs)))])
    decoder, prefix = Decoder(lm.model), method.prefix_ids(lm)
    seen, start = [], len(prefix)
    for reference in refs:
        memory = oracle.write(decoder, prefix, reference, method.config.memory_layers, kept=None)
        seen.append(oracle.place(decoder, memory, start))
        start += len(reference)
    assert difference(with_memory, oracle.read(decoder, prefix, PROMPT, [seen] * len(PROMPT), start)) <= EXACT


@torch.no_grad()
def test_t4_dense_rows_of_a_batch_equal_single_rows() -> None:
    """Rows with memories of other lengths, or with none, stand where they would stand alone."""
    lm = make_lm()
    method = Memory3(dense(lm))
    rows = [[13, 17], [5], []]
    groups = [[Group(0, tuple(method.write(lm, [tokens(n, seed=n) for n in row]) if row else ()))] for row in rows]
    ids_BT = torch.tensor([PROMPT, PROMPT[::-1], PROMPT])
    together = lm.forward(ids_BT, method.prefix(lm, groups, [len(PROMPT)] * 3))
    for ids_T, row, group in zip(ids_BT, together, groups, strict=True):
        assert difference(row, read(lm, method, ids_T.tolist(), group)) <= EXACT


@torch.no_grad()
def test_t5_a_chunks_memories_do_not_leak_to_earlier_chunks() -> None:
    lm = make_lm()
    method = small(lm)
    groups = in_chunks(lm, method, CHUNKS)
    without_last = [*groups[:2], Group(groups[2].start, ())]
    one, other = read(lm, method, PROMPT, groups), read(lm, method, PROMPT, without_last)
    start = groups[2].start
    assert difference(one[:start], other[:start]) <= 1e-12
    assert difference(one[start:], other[start:]) > 0.01


def test_t6_softmax_and_exp_select_alike_but_not_the_same() -> None:
    """The paper's page found two thirds of the tokens shared at random weights."""
    lm = make_lm()
    refs = references(6)
    one, other = (small(lm, selection=selection).write(lm, refs) for selection in ("softmax", "exp"))
    shared = [
        len(set(a.tolist()) & set(b.tolist())) / KEPT
        for m, n in zip(one, other, strict=True)
        for a, b in zip(m.index_LGN.flatten(0, 1), n.index_LGN.flatten(0, 1), strict=True)
    ]
    assert 0.3 < sum(shared) / len(shared) < 1


# -- selection -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["softmax", "exp"])
@pytest.mark.parametrize("name", ["tiny", "qwen3"])
def test_the_same_tokens_are_kept_as_by_the_oracle(name: str, selection: str) -> None:
    lm = make_lm(name)
    method, refs = small(lm, selection=selection), references(2)
    decoder = Decoder(lm.model)
    for memory, reference in zip(method.write(lm, refs), refs, strict=True):
        layers = method.config.memory_layers
        expected = oracle.write(decoder, method.prefix_ids(lm), reference, layers, KEPT, selection)
        assert memory.index_LGN.tolist() == [expected.indices[layer] for layer in layers]
        placed = oracle.place(decoder, expected, len(method.prefix_ids(lm)))
        keys = torch.stack(
            [torch.stack([torch.stack([k for k, _ in slots]) for slots in placed.slots[layer]]) for layer in layers]
        )
        assert difference(memory.key_LGND, keys) <= EXACT


def test_weights_by_hand_are_summed_over_a_group() -> None:
    """Keys 0 and ln 3 under a query of 1 share 1 : 3; a query of 0 shares equally; two query heads, one group."""
    query_BHTD = torch.tensor([[[[1.0], [1.0]], [[0.0], [0.0]]]])
    key_BGTD = torch.tensor([[[[0.0], [math.log(3.0)]]]])
    real_BT = torch.ones(1, 2, dtype=torch.bool)
    softmax = attention_received(query_BHTD, key_BGTD, real_BT, 1.0)
    torch.testing.assert_close(softmax, torch.tensor([[[2 * (0.25 + 0.5), 2 * (0.75 + 0.5)]]]))
    exp = attention_received(query_BHTD, key_BGTD, real_BT, 1.0, "exp")
    torch.testing.assert_close(exp.exp(), torch.tensor([[[2 * (1 + 1.0), 2 * (3 + 1.0)]]]))
    half = attention_received(query_BHTD, key_BGTD, real_BT, 0.5)  # shares 1 : sqrt(3)
    torch.testing.assert_close(half[0, 0, 1] - 1, 2 * torch.tensor(3.0).sqrt() / (1 + torch.tensor(3.0).sqrt()))


def test_each_group_of_query_heads_selects_for_its_own_key_head() -> None:
    query_BHTD = torch.tensor([1.0, 1.0, -1.0, -1.0])[None, :, None, None].expand(1, 4, 3, 1)
    key_BGTD = torch.tensor([0.0, 1.0, 2.0])[None, None, :, None].expand(1, 2, 3, 1)
    weight_BGT = attention_received(query_BHTD, key_BGTD, torch.ones(1, 3, dtype=torch.bool), 1.0)
    assert weight_BGT[0].argmax(-1).tolist() == [2, 0]


def test_the_selection_sees_no_causal_mask() -> None:
    """The first token may be attended to most by itself; here the last is, by all."""
    query_BHTD = torch.ones(1, 1, 4, 1)
    key_BGTD = torch.tensor([0.0, 0.0, 0.0, 9.0])[None, None, :, None]
    weight_BGT = attention_received(query_BHTD, key_BGTD, torch.ones(1, 4, dtype=torch.bool), 1.0)
    assert float(weight_BGT[0, 0, 3]) > 3.9


def test_padding_takes_no_part() -> None:
    query_BHTD, key_BGTD = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    real_BT = torch.arange(6)[None] < 4
    for selection in ("softmax", "exp"):
        padded = attention_received(query_BHTD, key_BGTD, real_BT, 0.3, selection)
        alone = attention_received(query_BHTD[:, :, :4], key_BGTD[:, :, :4], real_BT[:, :4], 0.3, selection)
        torch.testing.assert_close(padded[..., :4], alone)
        assert bool((padded[..., 4:] == -math.inf).all())


def test_exp_in_logarithms_ranks_like_plain_exp_and_does_not_overflow() -> None:
    query_BHTD, key_BGTD = torch.randn(2, 4, 9, 8).double(), torch.randn(2, 2, 9, 8).double()
    real_BT = torch.ones(2, 9, dtype=torch.bool)
    weight_BGT = attention_received(query_BHTD, key_BGTD, real_BT, 1.0, "exp")
    plain = (query_BHTD.unflatten(1, (2, 2)) @ key_BGTD[:, :, None].transpose(-1, -2)).exp().sum(dim=(2, 3))
    assert weight_BGT.argsort(-1).tolist() == plain.argsort(-1).tolist()
    assert bool(attention_received(100 * query_BHTD, 100 * key_BGTD, real_BT, 1.0, "exp").isfinite().all())


def test_ties_go_to_the_earlier_token() -> None:
    weight_BGT = torch.tensor([[[1.0, 2.0, 2.0, 1.0, 2.0, 1.0]]])
    real_BT = torch.ones(1, 6, dtype=torch.bool)
    assert select(weight_BGT, real_BT, 2).tolist() == [[[1, 2]]]
    assert select(weight_BGT, real_BT, 4).tolist() == [[[0, 1, 2, 4]]]
    assert select(torch.zeros(1, 1, 6), real_BT, 3).tolist() == [[[0, 1, 2]]]
    assert select(weight_BGT, real_BT, None).tolist() == [[[0, 1, 2, 3, 4, 5]]]


def test_ties_go_to_the_earlier_token_whatever_rounding_says() -> None:
    """Repeated tokens weigh the same in the first layer, but not to the last bit, and not the same in a batch."""
    lm, draw = LM(tiny_model(), byte_tokenizer(), "float32"), random.Random(0)
    words = "the cat sat on the mat and the dog saw the cat run to the barn".split()
    refs = [lm.encode(" ".join(draw.choices(words, k=20)))[: draw.randrange(40, 100)] for _ in range(32)]
    for selection in ("softmax", "exp"):
        method = Memory3(replace(paper(lm), selection=selection))
        for memory, reference in zip(method.write(lm, refs), refs, strict=True):
            assert memory.index_LGN.tolist() == method.write(lm, [reference])[0].index_LGN.tolist()
            for kept in memory.index_LGN[0].tolist():
                for index in kept:  # whoever is kept, its first appearance is too
                    assert reference.index(reference[index]) in kept


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 4))
def test_select_is_the_oracles_choice(weights: list[int], kept: int, num_padding: int) -> None:
    weight_BGT = torch.tensor([[[*map(float, weights), *[-math.inf] * num_padding]]])
    real_BT = torch.tensor([[True] * len(weights) + [False] * num_padding])
    chosen = oracle.heaviest(weights, kept)
    assert select(weight_BGT, real_BT, kept).tolist() == [[chosen + [-1] * (kept - len(chosen))]]


def test_fewer_tokens_than_slots_leave_slots_empty() -> None:
    weight_BGT = torch.tensor([[[0.5, 0.5, 3.0, -math.inf]]])
    real_BT = torch.tensor([[True, True, True, False]])
    assert select(weight_BGT, real_BT, 8).tolist() == [[[0, 1, 2, -1, -1, -1, -1, -1]]]
    assert select(weight_BGT, real_BT, 4).tolist() == [[[0, 1, 2, -1]]]
    assert select(weight_BGT, real_BT, None).tolist() == [[[0, 1, 2, -1]]]


PLAIN = {
    "tiny": lambda module, hidden: (module.q_proj(hidden), module.k_proj(hidden)),
    "qwen3": lambda module, hidden: (
        module.q_norm(module.q_proj(hidden).unflatten(-1, (-1, 16))).flatten(-2),
        module.k_norm(module.k_proj(hidden).unflatten(-1, (-1, 16))).flatten(-2),
    ),
    "olmo2": lambda module, hidden: (module.q_norm(module.q_proj(hidden)), module.k_norm(module.k_proj(hidden))),
    "phi3": lambda module, hidden: module.qkv_proj(hidden).split([64, 32, 32], dim=-1)[:2],
}
PLAIN["gemma3_text"] = PLAIN["qwen3"]


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_queries_and_keys_before_rope_are_the_familys_own(name: str) -> None:
    lm = make_lm(name)
    watch = attention.AttentionCapture(frozenset([0, 1]), pre_rope=True, stop=True)
    with pytest.raises(attention.StopForward):
        lm.model(torch.tensor([PROMPT]), use_cache=False, watch=watch)
    for layer, module in list(attention.attention_modules(lm.model).items())[:2]:
        query, key = PLAIN[name](module, watch.hidden[layer])
        shown = watch.seen[layer]
        torch.testing.assert_close(shown.pre_rope_query_BHTD, query.unflatten(-1, (-1, 16)).transpose(1, 2))
        torch.testing.assert_close(shown.pre_rope_key_BGTD, key.unflatten(-1, (-1, 16)).transpose(1, 2))


# -- writing -------------------------------------------------------------------------------------------------


def test_a_memory_has_the_papers_shape() -> None:
    lm = make_lm()
    memory = Memory3(paper(lm)).write(lm, [tokens(128, seed=1)])[0]
    assert memory.layers == (0, 1)
    assert memory.key_LGND.shape == memory.value_LGND.shape == (2, 2, 8, 16)
    assert memory.index_LGN.shape == (2, 2, 8)
    assert bool((memory.index_LGN >= 0).all())
    assert bool((memory.index_LGN < 128).all())
    assert bool((memory.index_LGN.diff(dim=-1) > 0).all())


def same(one: ExplicitMemory, other: ExplicitMemory) -> None:
    assert one.layers == other.layers
    assert one.index_LGN.tolist() == other.index_LGN.tolist()
    real = one.index_LGN[..., None] >= 0
    for a, b in ((one.key_LGND, other.key_LGND), (one.value_LGND, other.value_LGND)):
        torch.testing.assert_close(a * real, b * real, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["paper", "dense"])
@pytest.mark.parametrize("name", ["tiny", "gemma3_text", "mixtral"])
def test_a_batch_writes_what_single_references_write(name: str, kind: str) -> None:
    lm = make_lm(name)
    method = small(lm) if kind == "paper" else Memory3(dense(lm))
    refs = [tokens(n, seed=n) for n in (24, 3, 1, 11)]
    for memory, reference in zip(method.write(lm, refs), refs, strict=True):
        same(memory, method.write(lm, [reference])[0])
        kept = len(reference) if kind == "dense" else KEPT
        assert memory.index_LGN.shape[-1] == kept
        assert int((memory.index_LGN[0, 0] >= 0).sum()) == min(kept, len(reference))


def test_a_short_reference_is_read_like_its_own_tokens() -> None:
    """Empty slots are seen by nobody."""
    lm = make_lm()
    refs = [[tokens(3, seed=1), tokens(24, seed=2), tokens(1, seed=3)], [tokens(2, seed=4)], []]
    method = small(lm)
    logits_TV = read(lm, method, PROMPT, in_chunks(lm, method, refs))
    assert difference(logits_TV, by_the_oracle(lm, method, PROMPT, refs)) <= EXACT


@pytest.mark.parametrize("num_tokens", [0, REFERENCE + 1])
def test_references_of_other_lengths_are_refused(num_tokens: int) -> None:
    lm = make_lm()
    with pytest.raises(InputError, match=rf"{num_tokens} tokens.*1 to {REFERENCE}.*split"):
        small(lm).write(lm, [tokens(5, seed=1), tokens(num_tokens, seed=1)])


def test_consecutive_positions_that_would_be_read_again_are_refused() -> None:
    with pytest.raises(InputError, match=r"every 64 tokens.*parallel"):
        Memory3Config((0,), positions="consecutive")


def test_gradients_through_writing_equal_gradients_in_context() -> None:
    lm, reference = make_lm(), tokens(REFERENCE, seed=3)
    method = whole(lm, REFERENCE)
    lm.model.zero_grad()
    prefix = method.prefix(lm, [[Group(0, tuple(method.write(lm, [reference])))]], [len(PROMPT)])
    lm.forward(torch.tensor([PROMPT]), prefix)[:, 5:].square().mean().backward()
    through_memory = {name: p.grad for name, p in lm.model.named_parameters()}
    lm.model.zero_grad()
    text = [*method.prefix_ids(lm), *reference, *PROMPT]
    lm.forward(torch.tensor([text]))[:, 5 - len(PROMPT) :].square().mean().backward()
    for name, p in lm.model.named_parameters():
        assert difference(through_memory[name], p.grad) <= 1e-4, name
    lm.model.zero_grad()


def test_gradients_reach_the_weights_that_wrote_sparse_memory() -> None:
    """Only what was written depends on a token that the prompt does not have."""
    lm, reference = make_lm(), [200] * 5 + tokens(12, seed=3)
    method = small(lm)
    lm.model.zero_grad()
    prefix = method.prefix(lm, [[Group(0, tuple(method.write(lm, [reference])))]], [len(PROMPT)])
    lm.forward(torch.tensor([[token for token in PROMPT if token != 200]]), prefix).square().mean().backward()
    grad = lm.model.model.embed_tokens.weight.grad
    assert float(grad[200].abs().max()) > 0
    assert (
        float(
            grad[[token for token in range(259) if token not in (*PROMPT, *reference, *method.prefix_ids(lm))]]
            .abs()
            .max()
        )
        == 0
    )
    lm.model.zero_grad()


def test_bfloat16_writes_nearly_the_same() -> None:
    lm, exact = make_lm("tiny", torch.bfloat16), make_lm()
    refs = references(4)
    shared = []
    for one, other in zip(small(lm).write(lm, refs), small(exact).write(exact, refs), strict=True):
        assert one.key_LGND.dtype == one.value_LGND.dtype == torch.bfloat16
        pairs = zip(one.index_LGN.flatten(0, 1), other.index_LGN.flatten(0, 1), strict=True)
        shared += [len(set(a.tolist()) & set(b.tolist())) / KEPT for a, b in pairs]
    assert sum(shared) / len(shared) > 0.85
    logits_TV = read(lm, small(lm), PROMPT, in_chunks(lm, small(lm), CHUNKS))
    assert (
        difference(logits_TV.double(), read(exact, small(exact), PROMPT, in_chunks(exact, small(exact), CHUNKS))) < 0.2
    )


# -- reading -------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def prompt_of(lm: LM, num_tokens: int, question: str = "") -> Prompt:
    text = (LETTERS * 8)[:num_tokens]
    return Prompt((*lm.bos, *lm.encode(text)), question)


def recaller(lm: LM, method: Memory3) -> Recalls:
    """Each search finds two texts: one with the query's first characters, one with its last."""
    return Recalls(lm, method, lambda query: (f"One about {query[:9]}.", f"Two about {query[-9:]}."))


def test_every_chunk_of_64_searches_with_its_own_words() -> None:
    lm = make_lm()
    method = Memory3(paper(lm))
    recall, text = recaller(lm, method), (LETTERS * 8)[:150]
    reading = method.read(lm, recall, [prompt_of(lm, 150, question="unused")])
    # the last chunk has 22 tokens; it searches with the last 64
    assert recall.queries == [text[:64], text[64:128], text[86:150]]
    assert [start for start, _ in reading.groups[0]] == [0, 65, 129]
    assert reading.prompts == (prompt_of(lm, 150).ids,)
    assert reading.memory_tokens == (2 * 8,)
    assert reading.prefix.offset_tokens == len(method.prefix_ids(lm)) + 128
    assert reading.prefix.refresh_tokens == 64


@pytest.mark.parametrize(
    ("num_tokens", "question", "query"), [(64, "who?", "who?"), (64, "", None), (65, "who?", None)]
)
def test_a_prompt_of_one_chunk_searches_with_its_question(num_tokens: int, question: str, query: str | None) -> None:
    lm = make_lm()
    method = Memory3(paper(lm))
    recall, text = recaller(lm, method), (LETTERS * 8)[:num_tokens]
    method.read(lm, recall, [prompt_of(lm, num_tokens, question)])
    expected = [query] if query else [text] if num_tokens == 64 else [text[:64], text[-64:]]
    assert recall.queries == expected


def test_read_is_the_oracle_with_what_was_found() -> None:
    lm = make_lm()
    method = small(lm)
    recall = recaller(lm, method)
    prompts = [prompt_of(lm, 21), prompt_of(lm, 8, "who?")]
    reading = method.read(lm, recall, prompts)
    for row, (prompt, groups) in enumerate(zip(prompts, reading.groups, strict=True)):
        chunks = [[lm.encode(found.chunk.text) for found in hits] for _, hits in groups]
        assert difference(run(lm, reading)[row], by_the_oracle(lm, method, list(prompt.ids), chunks)) <= EXACT


@torch.no_grad()
def test_decoding_goes_on_with_the_last_chunks_memories() -> None:
    lm = make_lm()
    method = small(lm)
    prompts = [prompt_of(lm, 21), prompt_of(lm, 21)]
    reading = method.read(lm, recaller(lm, method), prompts)
    cache_ = DynamicCache(config=lm.model.config)
    lm.forward(torch.tensor([prompt.ids for prompt in prompts]), reading.prefix, cache=cache_)
    stepped = [lm.forward(torch.tensor([[t], [t]]), reading.decoding, cache=cache_)[0, -1] for t in (40, 50)]
    groups = [Group(start, tuple(recaller(lm, method).memories(hits))) for start, hits in reading.groups[0]]
    assert difference(torch.stack(stepped), read(lm, method, [*prompts[0].ids, 40, 50], groups)[-2:]) <= EXACT


def test_decoding_past_a_refresh_equals_one_pass_over_the_groups() -> None:
    lm = make_lm()
    method = Memory3(paper(lm))
    recall = recaller(lm, method)
    reading = method.read(lm, recall, [prompt_of(lm, 90, "who?")])
    seen: list[Reading] = [reading]

    def refresh(rows: list[list[int]]) -> Prefix | None:
        seen.append(method.refresh(lm, recall, seen[-1], rows))
        return seen[-1].decoding

    options = {"decoding_prefix": reading.decoding, "refresh": refresh, "max_tokens": 140}
    for rows in decode(lm, reading.prompts, reading.prefix, **options):  # type: ignore[arg-type]
        row = rows[0]
    groups = [Group(start, tuple(recall.memories(hits))) for start, hits in seen[-1].groups[0]]
    assert [group.start for group in groups[-2:]] == [len(row.prompt) + 63, len(row.prompt) + 127]
    logits_TV = read(lm, method, row.all_ids[:-1], groups)[len(row.prompt) - 1 :]
    assert logits_TV.argmax(-1).tolist() == row.ids


def test_a_row_that_has_ended_searches_no_more() -> None:
    lm = make_lm()
    method = Memory3(paper(lm))
    recall = recaller(lm, method)
    reading = method.read(lm, recall, [prompt_of(lm, 10, "who?"), prompt_of(lm, 20, "when?")])
    recall.queries.clear()
    again = method.refresh(lm, recall, reading, [[], [*reading.prompts[1], *lm.encode(LETTERS * 2)]])
    assert len(recall.queries) == 1
    assert again.groups[0] == reading.groups[0]
    assert len(again.groups[1]) == 2


def test_read_again_replaces_memories_by_those_of_the_last_tokens() -> None:
    lm = make_lm()
    method = Memory3(paper(lm))
    recall = recaller(lm, method)
    reading = method.read(lm, recall, [prompt_of(lm, 10, "who?"), prompt_of(lm, 20, "when?")])
    rows = [[*ids, *lm.encode("z" * 40 + LETTERS + LETTERS[:28])] for ids in reading.prompts]
    recall.queries.clear()
    again = method.refresh(lm, recall, reading, rows)
    assert recall.queries == [LETTERS + LETTERS[:28]] * 2
    assert again.prefix is reading.prefix
    assert again.prompts == reading.prompts
    assert [start for start, _ in again.groups[0]] == [0, len(rows[0]) - 1]
    assert [start for start, _ in again.groups[1]] == [0, len(rows[1]) - 1]
    texts = [found.chunk.text for found in again.groups[0][-1][1]]
    assert texts == ["One about abcdefghi.", "Two about tuvwxyz01."]
    expected = method.prefix(lm, [[Group(0, tuple(recall.memories(again.groups[0][-1][1])))]], [1])
    assert again.decoding.offset_tokens == reading.prefix.offset_tokens
    for kv, other in zip(again.decoding.kvs, expected.kvs, strict=True):
        torch.testing.assert_close(kv.key_BGMD[:1], other.key_BGMD)


def test_nothing_found_leaves_the_prefix_alone() -> None:
    lm = make_lm()
    for method in (small(lm), Memory3(dense(lm))):
        reading = method.read(lm, Recalls(lm, method, lambda query: ()), [prompt_of(lm, 21), prompt_of(lm, 5)])
        assert not any(reading.memory_tokens)
        prefix_ids, offset = method.prefix_ids(lm), reading.prefix.offset_tokens
        for row, logits_TV in zip(reading.prompts, run(lm, reading), strict=True):
            ids_BT = torch.tensor([[*prefix_ids, *row]])
            positions_BT = torch.tensor([[*range(len(prefix_ids)), *range(offset, offset + len(row))]])
            with torch.no_grad():  # without a mask transformers takes the gap for the beginning of another text
                plain = lm.forward(ids_BT, positions_BT=positions_BT, mask_BS=torch.ones_like(ids_BT))[0]
            assert difference(logits_TV, plain[len(prefix_ids) :]) <= EXACT


def test_a_model_without_bos_has_a_prefix_without_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    lm = LM(tiny_model(), tokenizer, "nobos")
    method = Memory3(paper(lm))
    assert method.prefix_ids(lm) == lm.encode("Reference:")
    reading = method.read(lm, recaller(lm, method), [prompt_of(lm, 130)])
    assert [start for start, _ in reading.groups[0]] == [0, 64, 128]


# -- shares --------------------------------------------------------------------------------------------------


def test_attention_mass_by_hand() -> None:
    """Two query heads on one key head, keys 0 and ln 3: shares 1/4, 3/4 and 1/2, 1/2; the mask hides the third."""
    query = torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 4, 1)
    key = torch.tensor([0.0, math.log(3.0), 5.0])[None, None, :, None]
    mask = torch.tensor([True, True, False])[None, None, None].expand(1, 1, 4, 3)
    additive = torch.zeros(1, 1, 4, 3).masked_fill(~mask, torch.finfo(torch.float32).min)
    for hidden in (mask, additive):
        mass = attention.attention_mass(attention.AttentionRecord(query, key, key, 1.0, hidden), first=2)
        torch.testing.assert_close(mass, torch.tensor([0.375, 0.625, 0.0]))


@pytest.mark.parametrize("kind", ["paper", "dense"])
def test_shares_are_the_weights_that_attention_gives(kind: str) -> None:
    """Against transformers' own attention weights of the same reading, one memory at a time."""
    lm = LM(tiny_model(num_layers=4, backend="eager"), byte_tokenizer(), "eager")
    method = small(lm) if kind == "paper" else Memory3(dense(lm))
    recall, attentions = recaller(lm, method), {}
    reading = method.read(lm, recall, [prompt_of(lm, 7, "who?"), prompt_of(lm, 20, "when?")])
    rows = [[*ids, *tokens(6, seed=4)] for ids in reading.prompts]
    for layer, module in attention.attention_modules(lm.model).items():
        module.register_forward_hook(lambda m, args, output, layer=layer: attentions.update({layer: output[1]}))
    for i, shares in enumerate(method.attention_shares(lm, recall, reading, rows)):
        groups = [Group(start, tuple(recall.memories(hits))) for start, hits in reading.groups[i]]
        prefix = method.prefix(lm, [groups], [len(rows[i])])
        with torch.no_grad():
            lm.forward(torch.tensor([rows[i]]), prefix)
        first = len(reading.prompts[i]) - 1
        weights = [attentions[layer][0, :, first:-1].mean((0, 1)) for layer in method.config.memory_layers]
        mean_S, column = torch.stack(weights).mean(0), len(method.prefix_ids(lm))
        expected: dict[str, float] = {}
        for found, memory in zip(
            [found for _, hits in reading.groups[i] for found in hits],
            [memory for group in groups for memory in group.memories],
            strict=True,
        ):
            width = memory.index_LGN.shape[-1]
            share = float(mean_S[column : column + width].sum())
            expected[found.chunk.id] = expected.get(found.chunk.id, 0.0) + share
            column += width
        assert shares == pytest.approx(expected, abs=1e-5)
        assert 0 < sum(shares.values()) < 1


def test_no_answer_or_no_memory_has_no_shares() -> None:
    lm = make_lm()
    method = small(lm)
    recall = recaller(lm, method)
    reading = method.read(lm, recall, [prompt_of(lm, 7)])
    assert method.attention_shares(lm, recall, reading, [list(reading.prompts[0])]) == [{}]
    nothing = Recalls(lm, method, lambda query: ())
    reading = method.read(lm, nothing, [prompt_of(lm, 7)])
    assert method.attention_shares(lm, nothing, reading, [[*reading.prompts[0], 5, 6]]) == [{}]
