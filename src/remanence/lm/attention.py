"""The seam: an attention function that also sees memory, and shows its queries, keys and values.

`model(ids, memory=prefix)` works on any Hugging Face causal LM after `prepare(model)`: transformers hands
unknown keyword arguments of the forward pass down to the attention function, and the function registered
here puts the prefix's keys and values in front of the text's own. Nothing is patched and no state is kept:
memory is an argument, and without it the model's own attention function runs untouched.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from remanence.errors import UnsupportedModel
from remanence.types import KV, Prefix

BACKENDS = ("eager", "sdpa")
_NAME = "memory|{}"


@dataclass(frozen=True)
class AttentionRecord:
    """What one attention call worked with; keys and values include the memory's, in front.

    `pre_rope_*` are queries and keys as they are before RoPE (only where they were asked for).
    """

    query_BHTD: Tensor
    key_BGSD: Tensor
    value_BGSD: Tensor
    scaling: float
    mask: Tensor | None
    pre_rope_query_BHTD: Tensor | None = None
    pre_rope_key_BGTD: Tensor | None = None


class StopForward(Exception):
    """Raised inside a forward pass when the last layer that was asked for has been seen."""


class LayerHook(Protocol):
    """Reads and changes what goes from layer to layer: `model(ids, layer_hook=layer_hook)`."""

    def enter(self, layer: int, hidden_BTC: Tensor) -> Tensor:
        """What the layer is given instead of `hidden_BTC`."""
        ...

    def leave(self, layer: int, hidden_BTC: Tensor) -> None:
        """What the layer has made of it. May raise Enough."""
        ...


@dataclass
class AttentionCapture:
    """Asks a forward pass to show attention at `layers`; `seen` fills as it runs.

    `pre_rope`: also the queries and keys before RoPE; `gradient`: with gradients through these too.
    `stop`: end the forward pass after the last of `layers`.
    """

    layers: frozenset[int]
    pre_rope: bool = False
    gradient: bool = False
    stop: bool = False
    seen: dict[int, AttentionRecord] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    _pre_rope: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def waits_for(self, layer: int) -> bool:
        """False once a layer was seen: gradient checkpointing runs layers again in the backward pass."""
        return layer in self.layers and layer not in self.seen

    def show_pre_rope(self, layer: int, query_BHTD: Tensor, key_BGTD: Tensor) -> None:
        if self.waits_for(layer):
            self._pre_rope[layer] = (query_BHTD, key_BGTD)

    def show(self, layer: int, seen: tuple[Tensor, Tensor, Tensor, float, Tensor | None]) -> None:
        if not self.waits_for(layer):
            return
        query, key = self._pre_rope.pop(layer, (None, None))
        self.seen[layer] = AttentionRecord(*seen, pre_rope_query_BHTD=query, pre_rope_key_BGTD=key)
        if self.stop and len(self.seen) == len(self.layers):
            raise StopForward


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Lets `model` take `memory=` and `watch=` in its forward pass; its weights and results stay as they are.

    Raises UnsupportedModel when its attention backend is neither "eager" nor "sdpa".
    """
    backend = str(model.config._attn_implementation)
    if backend.startswith("memory|"):
        return model
    if backend not in BACKENDS:
        raise UnsupportedModel(
            f"attention backend {backend!r} cannot hide memory from single tokens",
            "load the model with attn_implementation='sdpa' (or 'eager')",
        )
    _register(backend)
    model.set_attn_implementation(_NAME.format(backend))
    for index, module in attention_modules(model).items():
        module.register_forward_pre_hook(_show_hidden, with_kwargs=True)
        layer = layer_of(model, module)
        layer.register_forward_pre_hook(partial(_enter, index), with_kwargs=True)
        layer.register_forward_hook(partial(_leave, index), with_kwargs=True)
    own: Any = getattr(model, "prepare_inputs_for_generation", None)
    if own is not None and not isinstance(own, GenerationInputs):  # a trained model may be prepared again
        setattr(model, "prepare_inputs_for_generation", GenerationInputs(own))  # noqa: B010 (nn.Module types it otherwise)
    return model


class GenerationInputs:
    """The model's own `prepare_inputs_for_generation`, which also takes `memory=` and `role=` for every step.

    `model.generate()` refuses arguments that this function's signature does not have. Positions that it makes count
    text alone, so `memory.offset_tokens` is added to them.
    """

    def __init__(self, own: Callable[..., dict[str, Any]]) -> None:
        self.own = own
        signature = inspect.signature(own)
        extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ("memory", "role")]
        named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        rest = [p for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
        self.__signature__ = signature.replace(parameters=[*named, *extra, *rest])

    def __call__(self, *args: Any, memory: Prefix | None = None, role: str | None = None, **kwargs: Any) -> Any:
        inputs = self.own(*args, **kwargs)
        if memory is not None:
            inputs["memory"] = memory
            if inputs.get("position_ids") is not None:
                inputs["position_ids"] = inputs["position_ids"] + memory.offset_tokens
        return inputs if role is None else {**inputs, "role": role}


@contextlib.contextmanager
def backend(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Runs a prepared model with another attention backend ("eager" or "sdpa") for a while."""
    own = str(model.config._attn_implementation)
    _register(name)
    model.set_attn_implementation(_NAME.format(name))
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def attention_mass(shown: AttentionRecord, first: int) -> Tensor:
    """mass_S, float32: attention on each key, mean over query heads and the query tokens from `first` on."""
    query_HTD, key_GSD = shown.query_BHTD[0, :, first:].float(), shown.key_BGSD[0].float()
    key_HSD = key_GSD.repeat_interleave(len(query_HTD) // len(key_GSD), dim=0)
    score_HTS = query_HTD @ key_HSD.transpose(-1, -2) * shown.scaling
    if shown.mask is not None:
        mask = shown.mask[0, :, first:]
        score_HTS = score_HTS.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else score_HTS + mask.float()
    return score_HTS.softmax(-1).mean(dim=(0, 1))


def attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """The model's attention modules by layer index; layers without attention are absent."""
    found = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and "Attention" in type(module).__name__ and index not in found:
            found[index] = module
    return found


def layer_of(model: nn.Module, attention: nn.Module) -> nn.Module:
    """The decoder layer that holds `attention`."""
    return next(m for m in model.modules() if any(child is attention for child in m.children()))


def _register(backend: str) -> None:
    AttentionInterface.register(_NAME.format(backend), _attend_with_memory(backend))
    # A name without a mask function would silently drop the causal mask.
    AttentionMaskInterface.register(_NAME.format(backend), ALL_MASK_ATTENTION_FUNCTIONS[backend])


def _base_attention(module: nn.Module, backend: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if backend == "eager":  # a subclass in another file uses its family's
        files = (sys.modules[cls.__module__] for cls in type(module).__mro__)
        return next(file.eager_attention_forward for file in files if hasattr(file, "eager_attention_forward"))
    return ALL_ATTENTION_FUNCTIONS[backend]


def _attend_with_memory(backend: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        memory: Prefix | None = None,
        memory_hidden: Tensor | None = None,
        watch: AttentionCapture | None = None,
        capture_pre_rope: AttentionCapture | None = None,
        heads_only: list[tuple[Tensor, Tensor, Tensor]] | None = None,
        role: str | None = None,
        layer_hook: LayerHook | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layer: int = module.layer_idx  # type: ignore[assignment]
        if heads_only is not None:
            heads_only.append((query, key, value))
            raise StopForward
        if capture_pre_rope is not None:
            capture_pre_rope.show_pre_rope(layer, query, key)
            return query[..., : value.shape[-1]].transpose(1, 2), None
        kv = None if memory is None else memory(layer, memory_hidden)  # type: ignore[arg-type]
        if kv is not None:
            attention_mask = _widen_mask(attention_mask, query, key, kv, additive=backend == "eager")
            key = torch.cat([_rows(kv.key_BGMD, key), key], dim=2)
            value = torch.cat([_rows(kv.value_BGMD, value), value], dim=2)
        if watch is not None:
            watch.show(layer, (query, key, value, kwargs.get("scaling") or query.shape[-1] ** -0.5, attention_mask))
        return _base_attention(module, backend)(module, query, key, value, attention_mask, **kwargs)

    return attend


def _rows(memory_BGMD: Tensor, text_BGTD: Tensor) -> Tensor:
    return memory_BGMD.to(text_BGTD.dtype).expand(len(text_BGTD), -1, -1, -1)


def _widen_mask(mask: Tensor | None, query: Tensor, key: Tensor, kv: KV, *, additive: bool) -> Tensor | None:
    """The text's mask with M columns in front; None where every text token may see every key."""
    T, S, M = query.shape[2], key.shape[2], kv.key_BGMD.shape[2]
    if mask is None:
        if T == 1 and kv.visible_BTM is None:
            return None
        # transformers left the causal mask to the kernel: upper-left, also over an empty static cache
        mask = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(0 if T > 1 else S)[None, None]
        if additive:
            mask = _additive(mask, query.dtype)
    visible = torch.ones(1, T, M, dtype=torch.bool, device=query.device) if kv.visible_BTM is None else kv.visible_BTM
    visible = visible[:, None].to(query.device)
    if mask.dtype != torch.bool:
        visible = _additive(visible, mask.dtype)
    rows = max(len(mask), len(visible))
    return torch.cat([visible.expand(rows, -1, T, -1), mask.expand(rows, visible.shape[1], T, -1)], dim=-1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _show_hidden(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict]:
    """Gives the attention function its module's input, and a watch the queries and keys before RoPE."""
    memory, watch = kwargs.get("memory"), kwargs.get("watch")
    if memory is None and watch is None:
        return args, kwargs
    hidden_BTC = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    layer: int = module.layer_idx  # type: ignore[assignment]
    if memory is not None:
        kwargs["memory_hidden"] = hidden_BTC
    if watch is not None and watch.waits_for(layer):
        watch.hidden[layer] = hidden_BTC
        if watch.pre_rope:
            _run_without_rope(module, args, kwargs, watch)
    elif watch is not None and watch.pre_rope and watch.gradient and layer in watch.layers:
        _run_without_rope(module, args, kwargs, watch)  # a layer run again must keep what it kept the first time
    return args, kwargs


def _enter(
    index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict] | None:
    layer_hook: LayerHook | None = kwargs.get("layer_hook")
    if layer_hook is None:
        return None
    if "hidden_states" in kwargs:
        return args, {**kwargs, "hidden_states": layer_hook.enter(index, kwargs["hidden_states"])}
    return (layer_hook.enter(index, args[0]), *args[1:]), kwargs


def _leave(index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    layer_hook: LayerHook | None = kwargs.get("layer_hook")
    if layer_hook is not None:
        layer_hook.leave(index, output if isinstance(output, Tensor) else output[0])


def _run_without_rope(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], watch: AttentionCapture
) -> None:
    """Calls the family's own attention module with cos = 1 and sin = 0 and no cache, up to the attention function.

    A cache is found by its type: what its argument is called changes with the version of transformers.
    """
    given = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
    given = {
        name: None if isinstance(value, Cache) else value
        for name, value in given.items()
        if name not in ("memory", "memory_hidden", "watch", "layer_hook")
    }
    if "position_embeddings" in given:
        given["position_embeddings"] = _no_rotation(given["position_embeddings"])
    with torch.set_grad_enabled(watch.gradient and torch.is_grad_enabled()):
        module.forward(**given, capture_pre_rope=watch)


def _no_rotation(embeddings: Any) -> Any:
    if isinstance(embeddings, Tensor):  # complex frequencies (Llama 4)
        return torch.ones_like(embeddings)
    if isinstance(embeddings, tuple | list) and len(embeddings) == 2:
        return torch.ones_like(embeddings[0]), torch.zeros_like(embeddings[1])
    raise UnsupportedModel(
        "this family hides how it rotates queries and keys, so selection without RoPE cannot be computed",
        "use --method retrieved_text, or open an issue with this line",
    )
