"""A cache layer with room at its end, so that a new token is written there and what is held is rarely copied."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

ROOM_TOKENS = 64
"""Memory³ reads memory again after as many tokens, and writes the layer anew; without that, one copy in so many."""


class RoomyLayer(DynamicLayer):
    """Holds what `DynamicLayer` holds; `keys` and `values` are the filled part of larger tensors.

    Whatever else sets `keys` or `values` (cropping, beams, memory put in front) costs one copy at the next token.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rooms: dict[str, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.get_seq_length() or self.keys is None or self.values is None:
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def put(self, keys: Tensor, values: Tensor) -> None:
        """In place of what is held; its room is given up at once."""
        self._rooms.clear()
        self.keys, self.values = keys, values

    def _appended(self, name: str, held: Tensor, more: Tensor) -> Tensor:
        """`held` with `more` behind it, in the room that `held` is the front of, or in a new one."""
        assert (held.dtype, held.shape[:2]) == (more.dtype, more.shape[:2])  # `torch.cat` would refuse, or promote
        start, end = held.shape[2], held.shape[2] + more.shape[2]
        room, filled = self._rooms.get(name, (held, None))
        if filled is not held or end > room.shape[2]:
            room = more.new_empty(*more.shape[:2], end + ROOM_TOKENS, more.shape[3])
            room[:, :, :start] = held
        room[:, :, start:end] = more
        self._rooms[name] = (room, room[:, :, :end])
        return self._rooms[name][1]


def roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """The model's own cache; only its plain layers (no sliding window, no state) get room."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_keyword(model: PreTrainedModel) -> str:
    """What the model's forward pass calls its cache: "cache", or "past_key_values" in transformers before 5.24."""
    parameters = (inspect.signature(part.forward).parameters for part in (model, model.base_model))
    return "cache" if any("cache" in names for names in parameters) else "past_key_values"
