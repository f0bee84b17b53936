"""Property P, family by family: the logits of B with memory of A equal those of B after A in context."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from remanence.lm import attention
from remanence.lm.cache import cache_keyword
from remanence.lm.capture import capture
from remanence.types import KV, LayerPrefix
from tests.lm.families import FAMILIES, NUM_LAYERS, backends, build, config
from tests.lm.in_context import logits_in_context

EXACT = 1e-5
"""float32: largest difference of logits, as a part of the largest logit in context."""
BF16 = 0.03
"""bfloat16: the same; two orders of the same sums differ by this much without any memory."""

M, T, PADDING, FIRST_STEP = 9, 7, 3, 4
SHAPES = ("whole", "ragged", "visible")
EFFECT = 0.01
"""A test that memory is read is worth something only where memory changes the logits by at least this part."""


@dataclass
class Case:
    model: PreTrainedModel
    second_BT: Tensor
    kvs: list[KV]
    see: dict[str, Tensor]
    truth: dict[str, Tensor]
    identical: bool


def what_is_seen() -> dict[str, Tensor]:
    """see_LBTM for memory that is whole, of another length in each layer (none in the first), or per token."""
    shape = (NUM_LAYERS, 2, T, M)
    ragged = torch.zeros(shape, dtype=torch.bool)
    for layer in range(1, NUM_LAYERS):
        ragged[layer, ..., 3 * (NUM_LAYERS - 1 - layer) :] = True
    visible = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    return {"whole": torch.ones(shape, dtype=torch.bool), "ragged": ragged, "visible": visible}


@cache
def case(name: str, backend: str, dtype: torch.dtype = torch.float32) -> Case:
    # In bfloat16 all experts are used: rounding would choose others, with memory or without.
    all_experts = dtype == torch.bfloat16 and hasattr(config(name), "num_experts_per_tok")
    experts = {"num_experts_per_tok": 4} if all_experts else {}
    model = build(name, backend, dtype, **experts)
    ids = torch.randint(3, 128, (2, M + T), generator=torch.Generator().manual_seed(2))
    first_BM, second_BT = ids[:, :M], ids[:, M:]
    see = what_is_seen()
    truth = {shape: logits_in_context(model, first_BM, second_BT, see[shape]) for shape in SHAPES}
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        attention.prepare(model)
        identical = torch.equal(before, model(ids, use_cache=False).logits)
        seen = capture(model, first_BM, frozenset(range(NUM_LAYERS)))
    kvs = [KV(seen[layer].key_BGSD, seen[layer].value_BGSD) for layer in range(NUM_LAYERS)]
    return Case(model, second_BT, kvs, see, truth, identical)


def prefix(case: Case, shape: str, padding: int, start: int, end: int) -> LayerPrefix:
    """What text tokens `start` to `end` (columns of the padded batch) are given to read."""
    if shape == "whole":
        return LayerPrefix(tuple(case.kvs))
    kvs: list[KV | None] = []
    for kv, see_BTM in zip(case.kvs, case.see[shape], strict=True):
        if shape == "ragged":
            length = int(see_BTM[0, 0].sum())
            kvs.append(KV(kv.key_BGMD[:, :, M - length :], kv.value_BGMD[:, :, M - length :]) if length else None)
        else:
            see_BTM = torch.stack([see_BTM[0], see_BTM[1].roll(padding, 0)])
            kvs.append(KV(kv.key_BGMD, kv.value_BGMD, see_BTM[:, start:end]))
    return LayerPrefix(tuple(kvs))


@torch.no_grad()
def read(case: Case, shape: str, cache_kind: str, padding: int) -> list[Tensor]:
    """Logits of both rows; the second row has `padding` tokens less and is padded on the left."""
    ids_BT = torch.stack([case.second_BT[0], case.second_BT[1].roll(padding)])
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :padding] = 0
    positions_BT = M + (mask_BT.cumsum(-1) - 1).clamp(min=0)
    caches = {
        "none": lambda: None,
        "dynamic": lambda: DynamicCache(config=case.model.config),
        "static": lambda: StaticCache(config=case.model.config, max_cache_len=T + 2),
    }
    cache = caches[cache_kind]()
    stops = [T] if cache is None else [FIRST_STEP, *range(FIRST_STEP + 1, T + 1)]
    logits = []
    for start, end in zip([0, *stops], stops, strict=False):
        output = case.model(
            ids_BT[:, start:end],
            attention_mask=mask_BT[:, :end] if padding else None,
            position_ids=positions_BT[:, start:end],
            **{cache_keyword(case.model): cache},
            use_cache=cache is not None,
            memory=prefix(case, shape, padding, start, end),
        )
        logits.append(output.logits.float())
    logits_BTV = torch.cat(logits, dim=1)
    return [logits_BTV[0], logits_BTV[1, padding:]]


def error(case: Case, shape: str, rows: list[Tensor]) -> float:
    truth_BTV = case.truth[shape]
    difference = max(float((row - truth[: len(row)]).abs().max()) for row, truth in zip(rows, truth_BTV, strict=True))
    return difference / float(truth_BTV.abs().max())


def test_enough_families_are_here() -> None:
    assert len(FAMILIES) >= 20, FAMILIES


@pytest.mark.parametrize(("name", "backend"), [(name, backend) for name in FAMILIES for backend in backends(name)])
class TestFamily:
    def test_without_memory_logits_are_bit_identical(self, name: str, backend: str) -> None:
        assert case(name, backend).identical

    def test_memory_changes_the_logits(self, name: str, backend: str) -> None:
        own = case(name, backend)
        with torch.no_grad():
            alone_BTV = own.model(own.second_BT, position_ids=M + torch.arange(T)[None], use_cache=False).logits
        assert error(own, "whole", list(alone_BTV)) > EFFECT

    @pytest.mark.parametrize("padding", [0, PADDING], ids=["even", "padded"])
    @pytest.mark.parametrize("cache_kind", ["none", "dynamic", "static"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_memory_equals_context(self, name: str, backend: str, shape: str, cache_kind: str, padding: int) -> None:
        own = case(name, backend)
        assert error(own, shape, read(own, shape, cache_kind, padding)) <= EXACT


@pytest.mark.parametrize("name", FAMILIES)
def test_memory_equals_context_in_bfloat16(name: str) -> None:
    own = case(name, backends(name)[-1], torch.bfloat16)
    assert own.identical
    for shape in SHAPES:
        assert error(own, shape, read(own, shape, "dynamic", PADDING)) <= BF16
