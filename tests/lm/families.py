"""Tiny random models of many families, built from what the installed transformers has."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NUM_LAYERS = 3

_SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "n_inner": 96,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "sliding_window": 128,
    "sliding_window_pattern": 2,
    "no_rope_layer_interval": 2,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
"""Each is set where a family's config has it."""

_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
}

_SPECIAL: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "bitnet": {},
    "cohere": {},
    "cohere2": {},
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "deepseek_v3": _LATENT,
    "ernie4_5": {},
    "exaone4": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {},
    "granite": {},
    "helium": {},
    "hunyuan_v1_dense": {"head_dim": 16},
    "llama": {},
    "llama4_text": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": {},
    "opt": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {},
    "starcoder2": {},
}

FAMILIES = [name for name in _SPECIAL if name in CONFIG_MAPPING and name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]


def config(name: str, **overrides: Any) -> Any:
    """The family's config with small sizes; `overrides` are set whether or not it has them."""
    cls = CONFIG_MAPPING[name]
    default = cls()
    sizes = {key: value for key, value in _SIZES.items() if getattr(default, key, None) is not None}
    return cls(**{**sizes, **_SPECIAL.get(name, {}), **overrides})


def backends(name: str) -> list[str]:
    """What the family can run with in the installed transformers."""
    cls = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])
    return ["eager", "sdpa"] if cls._supports_sdpa else ["eager"]


def build(name: str, backend: str = "sdpa", dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """A random model whose norms, biases and sinks are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config(name, **overrides), attn_implementation=backend)
        randomise(model)
    return model.eval().to(dtype)


def randomise(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter.data, std=0.05)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
