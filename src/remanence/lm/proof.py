"""What must hold before a model is given memory: property P, measured on the user's own model and backend.

Property P: for texts A and B, the logits of B with memory = keys and values of A equal those of B after A in
context. It needs no trained weights, holds for any family whose attention is one softmax over the keys it
hands over, and fails loudly.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remanence.errors import UnsupportedModel
from remanence.lm import attention
from remanence.types import KV, Prefix

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of logits that `prove` allows, as a part of the largest logit (at least of 1)."""

_NUM_TOKENS = 8


@dataclass(frozen=True)
class LayerPrefix:
    """A prefix that is already keys and values, one entry (or None) per layer."""

    kvs: tuple[KV | None, ...]
    offset_tokens: int = 0
    refresh_tokens: int | None = None

    def __call__(self, layer: int, hidden_BTC: Tensor) -> KV | None:
        return self.kvs[layer]


@dataclass(frozen=True)
class Proof:
    """Differences of logits: with memory against in context (`error`), and without memory (`effect`)."""

    error: float
    effect: float
    allowed: float


def text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()


def num_layers(model: PreTrainedModel) -> int:
    return text_config(model).num_hidden_layers


def family(model: PreTrainedModel) -> str:
    return model.config.model_type


def capture(
    model: PreTrainedModel,
    ids_BT: Tensor,
    layers: frozenset[int],
    *,
    positions_BT: Tensor | None = None,
    memory: Prefix | None = None,
    pre_rope: bool = False,
    gradient: bool = False,
    role: str | None = None,
) -> dict[int, attention.AttentionRecord]:
    """Runs `model` just far enough to see attention at `layers`, without a cache; gradients flow.

    `pre_rope`: also queries and keys before RoPE; `gradient`: with theirs.

    `positions_BT` None: 0, 1, 2 ...; right padding needs no mask, since text never sees what follows it.
    """
    watch = attention.AttentionCapture(layers, pre_rope=pre_rope, gradient=gradient, stop=True)
    if positions_BT is None:
        positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
    with contextlib.suppress(attention.StopForward):
        extra: Any = {} if role is None else {"role": role}
        model(ids_BT, position_ids=positions_BT, use_cache=False, memory=memory, watch=watch, **extra)
    return watch.seen


def watch(
    model: PreTrainedModel,
    ids_BT: Tensor,
    layers: frozenset[int],
    positions_BT: Tensor,
    mask_BT: Tensor,
    memory: Prefix,
    role: str | None,
) -> dict[int, Tensor]:
    """hidden_BTC that enters attention at `layers`, in one pass that reads `memory`."""
    seen = attention.AttentionCapture(layers, stop=True)
    extra: Any = {} if role is None else {"role": role}
    with contextlib.suppress(attention.StopForward):
        model(
            ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            use_cache=False,
            memory=memory,
            watch=seen,
            **extra,
        )
    return seen.hidden


def prove(model: PreTrainedModel) -> Proof:
    """Checks property P on two 8-token texts; `model` must have been given to `seam.prepare`.

    Raises UnsupportedModel with the measured error, naming the family and the reason where it is known.
    """
    _refuse_by_structure(model)
    generator = torch.Generator().manual_seed(0)
    vocab = text_config(model).vocab_size
    ids_BT = torch.randint(vocab // 4, vocab // 2 + 1, (1, 2 * _NUM_TOKENS), generator=generator).to(model.device)
    try:
        with torch.no_grad():
            proof = _measure(model, ids_BT[:, :_NUM_TOKENS], ids_BT[:, _NUM_TOKENS:])
    except UnsupportedModel:
        raise
    except Exception as error:
        raise _refusal(model, f"its forward pass fails with memory ({type(error).__name__}: {error})") from error
    # Also against the effect of the text itself: a model that drops memory must not pass by having tiny logits.
    if not (proof.error <= proof.allowed and proof.error <= 0.2 * proof.effect):
        raise _refusal(
            model, f"logits differ by {proof.error:.2g} (allowed {min(proof.allowed, 0.2 * proof.effect):.2g})"
        )
    return proof


def _measure(model: PreTrainedModel, first_BT: Tensor, second_BT: Tensor) -> Proof:
    both_BT = torch.cat([first_BT, second_BT], dim=1)
    positions_BT = torch.arange(both_BT.shape[1], device=both_BT.device)[None]
    after_BT = positions_BT[:, first_BT.shape[1] :]
    layers = num_layers(model)
    seen = capture(model, first_BT, frozenset(range(layers)))
    if len(seen) < layers:
        raise _refusal(model, f"only {len(seen)} of {layers} layers have attention that memory can reach (a hybrid?)")
    prefix = LayerPrefix(tuple(KV(seen[i].key_BGSD, seen[i].value_BGSD) for i in range(layers)))
    full = model(both_BT, position_ids=positions_BT, use_cache=False).logits[:, first_BT.shape[1] :].float()
    read = model(second_BT, position_ids=after_BT, use_cache=False, memory=prefix).logits.float()
    alone = model(second_BT, position_ids=after_BT, use_cache=False).logits.float()
    scale = max(1.0, float(full.abs().max()))
    error, effect = float((read - full).abs().max()), float((alone - full).abs().max())
    return Proof(error, effect, TOLERANCE.get(model.dtype, 1e-3) * scale)


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
