"""Builds the model of a recipe, and sets how it computes: dtype, compilation, checkpointing, fast attention on CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from remanence.lm import attention
from remanence.train.core import parallel
from remanence.train.core.optimizer import Optimizer, ParamGroup
from remanence.train.core.shapes import Shape

FAST = "remanence_fast"


def build_model(shape: Shape, seed: int) -> Any:
    """A Llama with random weights (normal, standard deviation 0.02); with `qk_norm` a Qwen3, the same with QK norm."""
    classes: tuple[Any, Any] = (Qwen3Config, Qwen3ForCausalLM) if shape.qk_norm else (LlamaConfig, LlamaForCausalLM)
    config_class, model_class = classes
    config = config_class(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(seed)
    model = model_class(config)
    model.set_attn_implementation("sdpa")
    return model


def to_bfloat16(model: nn.Module) -> None:
    """Converts the parameters to bfloat16, but no buffers: the rotary frequencies stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()


def whole_model_optimizer(
    model: LlamaForCausalLM, dtype: str, groups: Sequence[ParamGroup], clip_norm: float
) -> tuple[Optimizer, Callable[..., Any]]:
    """(optimizer of all parameters, a function that calls what needs them: see `Run.call_with_params`).

    A single process keeps the weights in `dtype` beside float32 masters. With several, each keeps float32 shards, which
    are gathered as `dtype`.
    """
    if parallel.size() > 1:
        call_with_params = parallel.Sharded(model, dtype)
        return Optimizer(dict(model.named_parameters()), groups, clip_norm), call_with_params
    masters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if dtype == "bfloat16":
        to_bfloat16(model)
    optimizer = Optimizer(dict(model.named_parameters()), groups, clip_norm)
    optimizer.load_weights(masters)
    return optimizer, parallel.call


def cast(device: torch.device, recipe: Any) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 if the recipe's `dtype` is "bfloat16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16")


def compile_layers(model: Any) -> None:
    """Compiles each layer separately: 1.3 to 1.5 times as fast on two CPU cores; it takes half a minute."""
    for layer in model.model.layers:
        layer.compile()


def enable_gradient_checkpointing(model: Any) -> None:
    """Recomputes layers in the backward pass instead of storing activations (the method's name differs by version)."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def use_fast_attention(model: Any) -> None:
    """Attention as two matrix products in the autocast dtype: on CPU 1.4 to 3 times as fast as SDPA.

    Softmax is computed in that dtype too, so this is for training only. A model that reads memory still does.
    """
    AttentionInterface.register(FAST, _attend)
    AttentionMaskInterface.register(FAST, sdpa_mask)
    attention._register(FAST)
    prepared = model.config._attn_implementation.startswith("memory|")
    model.set_attn_implementation(f"memory|{FAST}" if prepared else FAST)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    T, S, groups = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if attention_mask is None:
        bias = torch.full((T, S), -torch.inf, dtype=query.dtype, device=query.device).triu(S - T + 1)
    else:
        bias = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, -torch.inf)
    weight_BHTS = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + bias).softmax(-1)
    return (weight_BHTS @ value).transpose(1, 2).contiguous(), None


def logits_at(model: Any, hidden_NC: Tensor) -> Tensor:
    """logits_NV of N selected hidden states (hidden_NC): most tokens need no logits."""
    return functional.linear(hidden_NC, model.lm_head.weight)
