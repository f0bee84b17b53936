"""`prove` refuses, by name and with the measured error, every model that would not read memory exactly."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.llama import modeling_llama

from remanence.errors import UnsupportedModel
from remanence.lm import attention, proof
from remanence.lm.capture import capture
from remanence.lm.tiny import tiny_model
from tests.lm.families import FAMILIES, backends, build, randomise

HYBRIDS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 32, "attn_layer_indices": [1]},
    "falcon_mamba": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "num_experts": 2},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "qwen3_next": {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "full_attention_interval": 3},
    "recurrent_gemma": {"lru_width": 64},
    "rwkv": {"attention_hidden_size": 64},
    "zamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 4,
        "n_mamba_heads": 2,
        "num_hidden_layers": 6,
    },
}
"""They carry state from token to token that no keys and values restore."""

PRIVATE = ["bloom", "codegen", "gptj", "gpt_neo"]
"""Their attention is their own code and does not reach transformers' interface, or does so in newer versions alone."""


def small(name: str, **overrides: Any) -> PreTrainedModel:
    sizes = {"vocab_size": 128, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 3, "intermediate_size": 96, "n_inner": 96, "pad_token_id": 0, "rotary_dim": 8}
    cls = CONFIG_MAPPING[name]
    default = cls()
    known = {key: value for key, value in sizes.items() if getattr(default, key, None) is not None}
    model = AutoModelForCausalLM.from_config(cls(**{**known, **overrides}), attn_implementation="eager")
    randomise(model)
    return model.eval()


def prove(model: PreTrainedModel) -> proof.Proof:
    return proof.prove(attention.prepare(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_pass_with_room_to_spare(name: str) -> None:
    proof = prove(build(name, backends(name)[-1]))
    assert proof.error <= 0.01 * proof.allowed
    assert proof.effect >= 1e4 * proof.error


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_pass(dtype: torch.dtype) -> None:
    assert prove(tiny_model(num_layers=4).to(dtype)).error < 0.1


@pytest.mark.parametrize("name", [name for name in HYBRIDS if name in CONFIG_MAPPING])
def test_a_hybrid_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"'{name}' does not pass.*layers have attention.*Llama"):
        prove(small(name, **HYBRIDS[name]))


@pytest.mark.parametrize("name", PRIVATE)
def test_a_family_whose_attention_is_out_of_reach_is_refused_by_name_until_it_is_within(name: str) -> None:
    overrides = {"attention_types": [[["global"], 3]], "num_layers": 3} if name == "gpt_neo" else {}
    model = small(name, **overrides)
    code = inspect.getsource(sys.modules[type(model).__module__])
    if "ALL_ATTENTION_FUNCTIONS" in code:
        assert prove(model).error < 1e-5
        return
    with pytest.raises(UnsupportedModel, match=rf"'{name}' does not pass"):
        prove(model)


@pytest.mark.parametrize(
    "model",
    [
        T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=32, d_ff=32, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0)
        ),
        BartForConditionalGeneration(
            BartConfig(
                vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
                encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64,
            )
        ),
    ],
    ids=["t5", "bart"],
)  # fmt: skip
def test_an_encoder_decoder_is_refused_by_name(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")
    with pytest.raises(UnsupportedModel, match=rf"'{model.config.model_type}'.*encoder-decoder"):
        prove(model)


# -- models that drop memory silently ------------------------------------------------------------------------


class DropsMemoryAttention(modeling_llama.LlamaAttention):
    """Shows what it computes, but never reads memory."""

    def forward(self, *args: Any, memory: object = None, memory_hidden: object = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class OwnAttention(modeling_llama.LlamaAttention):
    """Computes attention itself, so nothing outside can add a key."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            p(hidden_states).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2)), None


class TwoSoftmaxAttention(modeling_llama.LlamaAttention):
    """Hands its keys over, but what comes back is not one softmax over them: it takes the text's own away again."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, weights = super().forward(*args, **kwargs)
        alone = {key: value for key, value in kwargs.items() if key not in ("memory", "memory_hidden", "watch")}
        return out - 0.5 * super().forward(*args, **alone)[0], weights


class AlmostAttention(modeling_llama.LlamaAttention):
    """Reads memory, but two percent too strongly."""

    def forward(self, *args: Any, memory: object = None, **kwargs: Any) -> Any:
        out, weights = super().forward(*args, memory=memory, **kwargs)
        return (out if memory is None else 1.02 * out), weights


def with_attention(cls: type[nn.Module], layers: tuple[int, ...] = (0, 1), std: float = 0.1) -> LlamaForCausalLM:
    model = tiny_model()
    for layer in layers:
        model.model.layers[layer].self_attn.__class__ = cls
    if std != 0.1:
        model.lm_head.weight.data.mul_(std)
    return model


@pytest.mark.parametrize("cls", [DropsMemoryAttention, OwnAttention, TwoSoftmaxAttention, AlmostAttention])
@pytest.mark.parametrize("layers", [(0, 1), (0,), (1,)])
def test_a_model_that_drops_memory_is_refused(cls: type[nn.Module], layers: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedModel, match="'llama' does not pass the memory test"):
        prove(with_attention(cls, layers))


@pytest.mark.parametrize("std", [1e-3, 1e-6])
def test_tiny_logits_do_not_hide_that_memory_is_dropped(std: float) -> None:
    assert prove(with_attention(modeling_llama.LlamaAttention, std=std)).effect < 0.1
    with pytest.raises(UnsupportedModel, match=r"logits differ by .* \(allowed"):
        prove(with_attention(DropsMemoryAttention, std=std))


def test_a_forward_pass_that_swallows_memory_is_refused() -> None:
    class Swallows(LlamaForCausalLM):
        def forward(self, *args: Any, memory: object = None, watch: object = None, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model = tiny_model()
    model.__class__ = Swallows
    with pytest.raises(UnsupportedModel, match="0 of 2 layers"):
        prove(model)


def test_logits_that_are_not_numbers_are_refused() -> None:
    model = tiny_model()
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(UnsupportedModel, match="logits differ by nan"):
        prove(model)


def test_a_refusal_is_one_line_with_a_way_out() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        prove(with_attention(DropsMemoryAttention))
    assert "\n" not in str(caught.value)
    assert " -> " in str(caught.value)


# -- capture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("biogpt", "gpt2", "opt")])
def test_queries_and_keys_before_rope_do_not_depend_on_positions(name: str) -> None:
    """Where positions are not learned, so no part of the hidden state; they are the rotated ones of position 0."""
    model = attention.prepare(build(name, backends(name)[-1]))
    ids_BT = torch.arange(30, 42)[None]
    with torch.no_grad():
        here, there = (
            capture(model, ids_BT, frozenset([0, 1, 2]), positions_BT=start + torch.arange(12)[None], pre_rope=True)
            for start in (0, 50)
        )
        still = capture(model, ids_BT, frozenset([0]), positions_BT=torch.zeros(1, 12, dtype=torch.long))
    # hunyuan scales queries and keys per channel after RoPE, so its attention is not relative and hidden states move
    for layer in range(1 if name == "hunyuan_v1_dense" else 3):
        one, other = here[layer], there[layer]
        assert one.pre_rope_query_BHTD is not None
        assert one.pre_rope_key_BGTD is not None
        torch.testing.assert_close(other.pre_rope_query_BHTD, one.pre_rope_query_BHTD, rtol=0, atol=2e-4)
        torch.testing.assert_close(other.pre_rope_key_BGTD, one.pre_rope_key_BGTD, rtol=0, atol=2e-4)
    if name not in ("deepseek_v2", "deepseek_v3", "llama4_text", "gpt_oss"):  # scaled or interleaved on top
        torch.testing.assert_close(still[0].query_BHTD, here[0].pre_rope_query_BHTD, rtol=0, atol=1e-5)
        torch.testing.assert_close(still[0].key_BGSD, here[0].pre_rope_key_BGTD, rtol=0, atol=1e-5)
