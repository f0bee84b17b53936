"""Runs a model just far enough to capture its attention or its hidden states, and says what a model is made of."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remanence.lm import attention
from remanence.types import Prefix


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


def capture_hidden(
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
