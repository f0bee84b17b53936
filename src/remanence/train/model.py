"""Builds the model of a recipe and runs its backbone with an attention that is fast on CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import AttentionMaskInterface

from remanence.train.recipes.nano import Shape

ROPE_THETA = 10_000.0
"""What LlamaConfig sets where nothing is said."""
FAST = "remanence_fast_causal"


def build_model(shape: Shape, seed: int) -> Any:
    """A Llama with random weights (normal, standard deviation 0.02) and tied embeddings."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.width // shape.num_heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("sdpa")
    return model


def use_fast_attention(model: Any) -> None:
    """Causal attention as two matrix products in the autocast type: measured faster than SDPA's CPU backward.

    For rows padded on the right only; masks are ignored.
    """
    AttentionInterface.register(FAST, _causal)
    AttentionMaskInterface.register(FAST, _no_mask)
    model.set_attn_implementation(FAST)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def _causal(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    T, groups = query.shape[2], query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query = query * query.shape[-1] ** -0.5
    hidden = torch.full((T, T), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
    weight_BHTS = (query @ key.transpose(-1, -2) + hidden).softmax(-1)
    return (weight_BHTS @ value).transpose(1, 2).contiguous(), None


def logits_at(model: Any, hidden_NC: Tensor) -> Tensor:
    """logits_NV of chosen hidden states: most of the text needs no logits."""
    return functional.linear(hidden_NC, model.model.embed_tokens.weight)
