"""Memory that lives in the cache while tokens are generated, so that it is not copied for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from remanence.lm.cache import RoomyLayer
from remanence.lm.capture import num_layers
from remanence.types import LayerPrefix, Prefix


class CachedPrefix:
    """Puts a prefix in front of the text that `cache` holds, layer by layer, and takes it out for the next one.

    For single tokens that see all of the prefix: then memory in the cache is what the seam would put in front
    of it. Their positions must be given, since the cache no longer counts text alone.
    """

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, padded: bool) -> None:
        self.layers: list[Any] = cache.layers
        self.num_columns = [0] * len(self.layers)
        # eager attention builds one mask for all layers, and a sliding window would drop memory first
        self.is_possible = not padded and str(model.config._attn_implementation).endswith("sdpa")
        self.is_possible &= all(type(layer) is RoomyLayer for layer in self.layers)
        self.is_possible &= len(self.layers) == num_layers(model)

    def place(self, prefix: Prefix | None) -> Prefix | None:
        """Replaces what was placed before; returns what must still be given as `memory=`: None, or `prefix` itself."""
        if not self.is_possible:
            return prefix
        fits = isinstance(prefix, LayerPrefix) and self._fits(prefix)
        for i, layer in enumerate(self.layers):
            kv = prefix.kvs[i] if fits and isinstance(prefix, LayerPrefix) else None
            num_columns = 0 if kv is None else kv.key_BGMD.shape[2]
            if num_columns or self.num_columns[i]:
                text_key, text_value = (part[:, :, self.num_columns[i] :] for part in (layer.keys, layer.values))
                key, value = (None, None) if kv is None else (kv.key_BGMD, kv.value_BGMD)
                layer.put(_front(key, text_key), _front(value, text_value))
            self.num_columns[i] = num_columns
        return None if fits else prefix

    def _fits(self, prefix: LayerPrefix) -> bool:
        """All may see all of it, and the cache holds what attention sees (latent attention caches something else)."""
        pairs = zip(prefix.kvs, self.layers, strict=True)
        return all(
            kv is None
            or (kv.visible_BTM is None and _heads(kv.key_BGMD, kv.value_BGMD) == _heads(layer.keys, layer.values))
            for kv, layer in pairs
        )


def _heads(key: Tensor, value: Tensor) -> tuple[int, ...]:
    return key.shape[1], key.shape[3], value.shape[1], value.shape[3]


def _front(memory_BGMD: Tensor | None, text_BGTD: Tensor) -> Tensor:
    if memory_BGMD is None:
        return text_BGTD
    return torch.cat([memory_BGMD.to(text_BGTD.dtype).expand(len(text_BGTD), -1, -1, -1), text_BGTD], dim=2)
