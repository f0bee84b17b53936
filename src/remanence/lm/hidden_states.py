"""Hidden rows: what a layer made of its last tokens, and what a row is as key and value at a layer's attention."""

from __future__ import annotations

import contextlib
import inspect
import sys
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remanence.errors import UnsupportedModel
from remanence.lm.attention import AttentionCapture, AttentionRecord, StopForward, attention_modules, layer_of
from remanence.lm.capture import num_layers, text_config
from remanence.lm.lora import RoleLinear
from remanence.types import KV, Prefix

NORMS = ("input_layernorm", "ln_1", "attention_norm", "self_attn_layer_norm")
"""What families call the norm in front of attention."""
TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference between a row's key and the model's own, as a part of the largest key; else 1e-4."""
_NUM_TOKENS = 8


@dataclass
class Outputs:
    """Collects what each layer made of chosen tokens, `take_BM`; the pass ends after the last layer.

    `front_LBTC` stands in, at every layer anew, for the tokens that `is_front_BT` marks: a row of a pool lives at one
    layer only. `added_C` is added to what every layer is given at the tokens that are taken.
    """

    take_BM: Tensor
    num_layers: int
    is_front_BT: Tensor | None = None
    front_LBTC: Tensor | None = None
    added_C: Tensor | None = None
    made: dict[int, Tensor] = field(default_factory=dict)

    def enter(self, layer: int, hidden_BTC: Tensor) -> Tensor:
        if self.is_front_BT is not None and self.front_LBTC is not None:
            front_BTC = self.front_LBTC[layer].to(hidden_BTC.dtype)
            hidden_BTC = torch.where(self.is_front_BT[..., None], front_BTC, hidden_BTC)
        if self.added_C is None:
            return hidden_BTC
        is_taken_BT = hidden_BTC.new_zeros(hidden_BTC.shape[:2]).scatter_(1, self.take_BM, 1.0)
        return hidden_BTC + is_taken_BT[..., None] * self.added_C.to(hidden_BTC.dtype)

    def leave(self, layer: int, hidden_BTC: Tensor) -> None:
        index_BMC = self.take_BM[..., None].expand(-1, -1, hidden_BTC.shape[-1])
        self.made[layer] = hidden_BTC.gather(1, index_BMC)
        if layer == self.num_layers - 1:
            raise StopForward


def make_rows(
    model: PreTrainedModel,
    ids_BT: Tensor,
    positions_BT: Tensor,
    outputs: Outputs,
    memory: Prefix | None = None,
    role: str | None = None,
) -> Tensor:
    """row_BLMC: every layer's outputs at the tokens that `outputs` takes; gradients flow.

    No logits are computed. Padding on the right needs no mask.
    """
    with contextlib.suppress(StopForward):
        model(ids_BT, position_ids=positions_BT, use_cache=False, memory=memory, role=role, layer_hook=outputs)
    return torch.stack([outputs.made[layer] for layer in range(outputs.num_layers)], dim=1)


def norm_of(model: PreTrainedModel, layer: int) -> nn.Module:
    """The norm in front of a layer's attention. UnsupportedModel where the family has none of a known name."""
    module = _layer(model, layer)
    for name in NORMS:
        if hasattr(module, name):
            return getattr(module, name)
    raise UnsupportedModel(
        f"latent memory does not know the norm in front of attention of {model.config.model_type!r}",
        "use --method memory3, or open an issue with this line",
    )


def rows_to_kv(model: PreTrainedModel, layer: int, row_BMC: Tensor, positions_M: Tensor, role: str | None = None) -> KV:
    """Keys and values of rows that stand at `positions_M` in front of a layer's text; gradients flow.

    The layer's own norm, projections (with the adapter of `role`) and rotation, as for text (authors' code).
    """
    normed_BMC = norm_of(model, layer)(row_BMC)
    attention = _attention(model, layer)
    turn = _rotation(model, layer, normed_BMC, positions_M)
    if is_simple(attention):
        return _project(attention, normed_BMC, turn, role)
    _, key_BGMD, value_BGMD = _heads(attention, normed_BMC, turn, role)
    return KV(key_BGMD, value_BGMD)


def queries(
    model: PreTrainedModel, layer: int, normed_BTC: Tensor, positions_T: Tensor, role: str | None = None
) -> Tensor:
    """query_BHTD of what enters a layer's attention, turned to `positions_T`."""
    return _heads(_attention(model, layer), normed_BTC, _rotation(model, layer, normed_BTC, positions_T), role)[0]


def is_simple(attention: nn.Module) -> bool:
    """Keys and values are two linear maps, whole heads rotated: Llama, Mistral, Qwen2 and their like."""
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    maps = all(isinstance(getattr(attention, name, None), nn.Linear | RoleLinear) for name in ("k_proj", "v_proj"))
    plain = not any(hasattr(attention, name) for name in ("k_norm", "qk_norm", "k_layernorm", "key_layernorm"))
    return type(attention).__name__ in SIMPLE and maps and plain and apply is not None


SIMPLE = ("LlamaAttention", "MistralAttention", "Qwen2Attention")


def _project(attention: Any, normed_BMC: Tensor, turn: Any, role: str | None) -> KV:
    def heads(name: str) -> Tensor:
        linear = getattr(attention, name)
        made = linear.under(role, normed_BMC) if isinstance(linear, RoleLinear) else linear(normed_BMC)
        return made.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    key_BGMD = heads("k_proj")
    apply = sys.modules[type(attention).__module__].apply_rotary_pos_emb  # type: ignore[attr-defined]
    return KV(apply(key_BGMD[:, :1], key_BGMD, *turn)[1], heads("v_proj"))


def _heads(attention: nn.Module, normed_BMC: Tensor, turn: Any, role: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the family's own attention module, stopped where it has them."""
    shown: list[tuple[Tensor, Tensor, Tensor]] = []
    with contextlib.suppress(StopForward):
        attention(normed_BMC, position_embeddings=turn, attention_mask=None, role=role, heads_only=shown)
    return shown[0]


def _rotation(model: PreTrainedModel, layer: int, hidden_BMC: Tensor, positions_M: Tensor) -> Any:
    rotary, by_type = _rotary(model)
    kinds = [text_config(model).layer_types[layer]] if by_type else []
    return rotary(hidden_BMC, positions_M[None].to(hidden_BMC.device), *kinds)


def _rotary(model: PreTrainedModel) -> tuple[nn.Module, bool]:
    found = [module for module in model.modules() if "RotaryEmbedding" in type(module).__name__]
    if not found:
        raise UnsupportedModel(
            f"{model.config.model_type!r} has no rotary positions, which latent memory needs",
            "use a model with RoPE (Llama, Qwen, Mistral, ...), or --method memory3",
        )
    return found[0], "layer_type" in inspect.signature(found[0].forward).parameters


_parts: WeakKeyDictionary[PreTrainedModel, dict[int, tuple[nn.Module, nn.Module]]] = WeakKeyDictionary()


def _attention(model: PreTrainedModel, layer: int) -> nn.Module:
    return _found(model)[layer][0]


def _layer(model: PreTrainedModel, layer: int) -> nn.Module:
    return _found(model)[layer][1]


def _found(model: PreTrainedModel) -> dict[int, tuple[nn.Module, nn.Module]]:
    """A model's attention modules and the decoder layers that hold them, looked for once."""
    if model not in _parts:
        found = attention_modules(model)
        _parts[model] = {i: (attention, layer_of(model, attention)) for i, attention in found.items()}
    return _parts[model]


@torch.no_grad()
def prove_rows(model: PreTrainedModel) -> float:
    """The largest difference between the model's own keys and values and those of its layers' inputs as rows.

    A part of the largest key. Raises UnsupportedModel where it is too large or cannot be measured.
    """
    ids_BT = torch.arange(_NUM_TOKENS, device=model.device)[None] + text_config(model).vocab_size // 4
    layers = range(num_layers(model))
    positions_M = torch.arange(_NUM_TOKENS, device=model.device)
    try:
        inputs, watch = _Inputs(), AttentionCapture(frozenset(layers))
        model(ids_BT, position_ids=positions_M[None], use_cache=False, watch=watch, layer_hook=inputs)
        error = max(_difference(model, i, inputs.given[i], positions_M, watch.seen[i]) for i in layers)
    except UnsupportedModel:
        raise
    except Exception as failure:
        raise _refusal(model, f"({type(failure).__name__}: {failure})") from failure
    if not error <= TOLERANCE.get(model.dtype, 1e-4):
        raise _refusal(model, f"differ by {error:.2g} of the largest key")
    return error


@dataclass
class _Inputs:
    given: dict[int, Tensor] = field(default_factory=dict)

    def enter(self, layer: int, hidden_BTC: Tensor) -> Tensor:
        self.given[layer] = hidden_BTC
        return hidden_BTC

    def leave(self, layer: int, hidden_BTC: Tensor) -> None:
        pass


def _difference(
    model: PreTrainedModel, layer: int, row_BMC: Tensor, positions_M: Tensor, seen: AttentionRecord
) -> float:
    kv = rows_to_kv(model, layer, row_BMC, positions_M)
    pairs = ((kv.key_BGMD, seen.key_BGSD), (kv.value_BGMD, seen.value_BGSD))
    return max(float((ours - own).abs().max() / own.abs().max()) for ours, own in pairs)


def _refusal(model: PreTrainedModel, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"latent memory: keys of hidden rows of {model.config.model_type!r} are not the model's own: {reason}",
        "use --method memory3, or open an issue with this line",
    )
