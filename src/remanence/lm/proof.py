"""What must hold before a model is given memory: property P, measured on the user's own model and backend.

Property P: for texts A and B, the logits of B with memory = keys and values of A equal those of B after A in
context. It needs no trained weights, holds for any family whose attention is one softmax over the keys it
hands over, and fails loudly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StaticCache,
)

from remanence.errors import UnsupportedModel
from remanence.lm import attention, rope_limit, versions
from remanence.lm.cache import cache_keyword, roomy_cache
from remanence.lm.cached_prefix import CachedPrefix
from remanence.lm.capture import capture, family, num_layers, text_config
from remanence.types import KV, LayerPrefix, Prefix

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of logits that `prove` allows, as a part of the largest logit (at least of 1)."""


@dataclass(frozen=True)
class ProofSize:
    """How many tokens a proof takes: of memory, of text, of padding in front of it, and decoding steps."""

    memory: int
    text: int
    padding: int
    steps: int


SHORT, LONG = ProofSize(5, 3, 1, 2), ProofSize(24, 16, 5, 12)
"""Whenever a model is loaded, and with a library that is newer than any tested."""


@dataclass(frozen=True)
class Proof:
    """Differences of logits: with memory against in context (`error`), and without memory (`effect`).

    `errors`: by path; `error` is the largest. `beyond`: past the positions where the family changes its rotary
    embedding (`rope_limit`), which are refused; 0 where it never does.
    """

    error: float
    effect: float
    allowed: float
    errors: Mapping[str, float] = field(default_factory=dict)
    beyond: float = 0.0


def prove(model: PreTrainedModel) -> Proof:
    """Checks property P on every path that is used later; `model` must have been given to `seam.prepare`.

    The paths: one pass without a cache, decoding with our cache (memory moves into it) while a capture looks on,
    and `generate()` of transformers with its cache and a padded row. Raises UnsupportedModel with the measured error,
    naming the family and the reason where it is known. With an untested library the proof is longer, and one
    warning says so.
    """
    _refuse_by_structure(model)
    newer = versions.untested()
    try:
        with torch.no_grad():
            proof = _measure(model, LONG if newer else SHORT, thorough=bool(newer))
            beyond = _measure_rope_limit(model, proof.allowed)
    except UnsupportedModel:
        raise
    except Exception as error:
        raise _refusal(model, f"its forward pass fails with memory ({type(error).__name__}: {error})") from error
    if newer:
        versions.warn_of(newer, family(model))
    return replace(proof, beyond=beyond)


def _measure(model: PreTrainedModel, size: ProofSize, *, thorough: bool) -> Proof:
    """Raises UnsupportedModel at the first path whose error is too large."""
    N, T, P = size.memory, size.text, size.padding
    ids_BT = _random_ids(model, N + T + size.steps)
    row_BT = ids_BT[:, N:]
    truth_TV, prefix = _in_context(model, ids_BT, N)
    read_TV, padded_TV, alone_TV = _read(model, row_BT, prefix, P)
    effect = float((alone_TV - truth_TV).abs().max())
    allowed = TOLERANCE.get(model.dtype, 1e-3) * max(1.0, float(truth_TV.abs().max()))
    # Also against the effect of the text itself: a model that drops memory must not pass by having tiny logits.
    limit, errors = min(allowed, 0.2 * effect), {}

    def check(path: str, logits: Tensor, truth: Tensor) -> None:
        errors[path] = float((logits - truth).abs().max())
        if not errors[path] <= limit:
            raise _refusal(model, f"logits differ by {errors[path]:.2g} (allowed {limit:.2g}) {path}")

    check("in one pass", read_TV, truth_TV)
    check("in a padded row", padded_TV, truth_TV[:-P])
    check("while tokens are decoded with a cache", _decode(model, row_BT, T, prefix, roomy_cache(model)), truth_TV)
    check("in generate() of transformers", _generate(model, row_BT, T, P, prefix), truth_TV[T - 1 :])
    for path, logits_TV in _thorough(model, row_BT, T, prefix) if thorough else ():
        check(path, logits_TV, truth_TV)
    return Proof(max(errors.values()), effect, allowed, errors)


def _in_context(model: PreTrainedModel, ids_BT: Tensor, num_memory: int) -> tuple[Tensor, LayerPrefix]:
    """logits_TV behind the first `num_memory` tokens, in one pass, and those tokens' keys and values as a prefix."""
    layers, T = num_layers(model), ids_BT.shape[1] - num_memory
    watch = attention.AttentionCapture(frozenset(range(layers)))
    given: Any = {"position_ids": _range(ids_BT), "use_cache": False, "logits_to_keep": T, "watch": watch}
    truth_BTV = model(ids_BT, **given).logits
    if len(watch.seen) < layers:
        raise _refusal(
            model, f"only {len(watch.seen)} of {layers} layers have attention that memory can reach (a hybrid?)"
        )
    return truth_BTV[0].float(), _prefix(watch.seen, num_memory)


def _prefix(seen: Mapping[int, attention.AttentionRecord], num_tokens: int) -> LayerPrefix:
    """Keys and values of the first tokens of the first row at all layers."""
    front = slice(0, 1), slice(None), slice(0, num_tokens)
    kvs = (KV(shown.key_BGSD[front], shown.value_BGSD[front]) for _, shown in sorted(seen.items()))
    return LayerPrefix(tuple(kvs), num_tokens)


def _read(model: PreTrainedModel, row_BT: Tensor, prefix: LayerPrefix, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of three rows of one pass: a text, the same padded on the left, and the same where memory is hidden."""
    T, N = row_BT.shape[1], prefix.offset_tokens
    visible_BTM = torch.tensor([True, True, False], device=row_BT.device)[:, None, None].expand(3, T, N)
    memory = LayerPrefix(tuple(KV(kv.key_BGMD, kv.value_BGMD, visible_BTM) for kv in prefix.kvs if kv is not None))
    ids_BT, mask_BT = row_BT.repeat(3, 1), torch.ones_like(row_BT).repeat(3, 1)
    ids_BT[1] = row_BT[0].roll(padding)
    mask_BT[1, :padding] = 0
    given: Any = {"attention_mask": mask_BT, "position_ids": N + (mask_BT.cumsum(1) - 1).clamp(min=0)}
    logits_BTV = model(ids_BT * mask_BT, use_cache=False, memory=memory, **given).logits.float()
    return logits_BTV[0], logits_BTV[1, padding:], logits_BTV[2]


class _Forced(LogitsProcessor):
    """Makes generate() choose given tokens; the logits that it reports stay those of the model."""

    def __init__(self, token_S: Tensor, num_prompt: int) -> None:
        self.token_S, self.num_prompt = token_S, num_prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = min(input_ids.shape[1] - self.num_prompt, len(self.token_S) - 1)
        return torch.full_like(scores, -torch.inf).index_fill(1, self.token_S[step], 0.0)


def _generate(model: PreTrainedModel, row_BT: Tensor, num_prompt: int, padding: int, prefix: Prefix) -> Tensor:
    """logits_TV that transformers' generate() has after a padded prompt and each further token of `row_BT`.

    The model's own generation settings take no part.
    """
    token_S = row_BT[0, num_prompt:]
    ids_BT = torch.cat([row_BT[:, :1].expand(1, padding), row_BT[:, :num_prompt]], dim=1)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[:, :padding] = 0
    plain = GenerationConfig(max_new_tokens=len(token_S) + 1, do_sample=False, pad_token_id=0)
    plain.output_logits = plain.return_dict_in_generate = True
    forced: Any = LogitsProcessorList([_Forced(token_S, ids_BT.shape[1])])
    given: Any = {"attention_mask": mask_BT, "memory": prefix, "generation_config": plain, "logits_processor": forced}
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        return torch.cat(model.generate(ids_BT, **given).logits).float()  # pyright: ignore
    finally:
        model.generation_config = own


def _decode(model: PreTrainedModel, row_BT: Tensor, num_prompt: int, prefix: LayerPrefix, cache: Any) -> Tensor:
    """logits_TV of a prompt and then of single tokens, as `lm/decode.py` computes them; a capture looks on."""
    name = cache_keyword(model)
    positions_BT = prefix.offset_tokens + _range(row_BT)
    logits, memory = [_prefill(model, row_BT[:, :num_prompt], positions_BT[:, :num_prompt], prefix, cache)], prefix
    if not isinstance(cache, StaticCache):
        memory = CachedPrefix(model, cache, padded=False).place(prefix)
    for i in range(num_prompt, row_BT.shape[1]):
        given: Any = {name: cache} if memory is None else {name: cache, "memory": memory}
        step = slice(i, i + 1)
        logits.append(model(row_BT[:, step], position_ids=positions_BT[:, step], use_cache=True, **given).logits)
    return torch.cat(logits, dim=1)[0].float()


def _prefill(model: PreTrainedModel, ids_BT: Tensor, positions_BT: Tensor, prefix: Prefix, cache: Cache) -> Tensor:
    """Logits of a prompt that goes into `cache` while a capture looks on. UnsupportedModel where that changes it."""
    last = num_layers(model) - 1
    few = frozenset([0, min(1, last), last])  # each costs a second pass of its attention
    watch = attention.AttentionCapture(few, pre_rope=True)
    given: Any = {cache_keyword(model): cache, "memory": prefix}
    try:
        logits_BTV = model(ids_BT, position_ids=positions_BT, use_cache=True, watch=watch, **given).logits
    except UnsupportedModel:  # this family hides its rotation; nothing is in the cache yet
        watch = attention.AttentionCapture(watch.layers)
        logits_BTV = model(ids_BT, position_ids=positions_BT, use_cache=True, watch=watch, **given).logits
    for layer in range(last + 1):
        length = int(cache.get_seq_length(layer))
        if length != ids_BT.shape[1]:
            raise _refusal(
                model, f"{length} tokens are in its cache at layer {layer} where {ids_BT.shape[1]} were given"
            )
    return logits_BTV


def _thorough(
    model: PreTrainedModel, row_BT: Tensor, num_prompt: int, prefix: LayerPrefix
) -> Iterator[tuple[str, Tensor]]:
    """Each further path of a longer proof, with its logits_TV: other caches, and the other attention backend."""
    for backend in attention.BACKENDS if model._supports_sdpa else ("eager",):
        with attention.backend(model, backend):
            caches = DynamicCache(config=model.config), StaticCache(model.config, max_cache_len=row_BT.shape[1] + 1)
            yield f"in one pass with {backend}", _read(model, row_BT, prefix, LONG.padding)[0]
            for cache in caches:
                kind = type(cache).__name__
                yield f"while decoding with {backend} and {kind}", _decode(model, row_BT, num_prompt, prefix, cache)


def _measure_rope_limit(model: PreTrainedModel, allowed: float) -> float:
    """The error of memory past the positions where the rotary embedding changes, refused from here on; 0 without any.

    Raises UnsupportedModel where memory is wrong before that too.
    """
    limit = rope_limit.rope_limit(model)
    if limit is None or rope_limit.reason_of(model):
        return 0.0
    N, T = SHORT.memory, SHORT.text
    if limit < N + T:
        raise _refusal(model, f"positions are rotated otherwise after a text of more than {limit} tokens")
    ids_BT = _random_ids(model, N + T)
    prefix = _prefix(capture(model, ids_BT[:, :N], frozenset(range(num_layers(model)))), N)

    def error(start: int) -> float:
        """Of a text at positions from `start` on, after memory at the first ones; masks say that it is one text."""
        after_BT = start + _range(ids_BT[:, N:])
        positions_BT = torch.cat([_range(ids_BT[:, :N]), after_BT], dim=1)
        one: Any = {"attention_mask": torch.ones_like(ids_BT), "use_cache": False, "logits_to_keep": T}
        truth_BTV = model(ids_BT, position_ids=positions_BT, **one).logits
        one["attention_mask"] = one["attention_mask"][:, N:]
        return float((model(ids_BT[:, N:], position_ids=after_BT, memory=prefix, **one).logits - truth_BTV).abs().max())

    before = error(limit - T)
    if not before <= allowed:
        raise _refusal(model, f"logits differ by {before:.2g} (allowed {allowed:.2g}) at positions up to {limit}")
    beyond = error(limit)
    rope_limit.refuse_beyond(
        model,
        limit,
        f"past them {family(model)!r} rotates keys otherwise, and logits with memory differ by {beyond:.2g}",
    )
    return beyond


def _random_ids(model: PreTrainedModel, num_tokens: int) -> Tensor:
    generator, vocab = torch.Generator().manual_seed(0), text_config(model).vocab_size
    return torch.randint(vocab // 4, vocab // 2 + 1, (1, num_tokens), generator=generator).to(model.device)


def _range(ids_BT: Tensor) -> Tensor:
    return torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]


def _refuse_by_structure(model: PreTrainedModel) -> None:
    if model.config.is_encoder_decoder:
        raise _refusal(model, "it is an encoder-decoder, and memory is read by a decoder's self-attention")
    found = attention.attention_modules(model)
    if len(found) < num_layers(model):
        raise _refusal(
            model,
            f"only {len(found)} of {num_layers(model)} layers have attention that memory can reach: "
            "a hybrid carries state that no prefix restores",
        )


def _refusal(model: PreTrainedModel, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{family(model)!r} does not pass the memory test: {reason}",
        "use a model with plain softmax attention (Llama, Qwen, Mistral, Gemma, ...), or open an issue with this line",
    )
