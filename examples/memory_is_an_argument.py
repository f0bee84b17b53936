"""The one idea underneath: keys and values of a text, given as `memory=`, equal the text in context."""

from __future__ import annotations

import torch
from transformers import DynamicCache

import remanence as rm

lm = rm.load("nano")
first, second = (torch.tensor([lm.encode(text)]) for text in ("The lighthouse has 94 steps.", " How many steps?"))
cache = DynamicCache(config=lm.model.config)
lm.forward(first, cache=cache)


class Before:
    """Stands in front of the text at every layer; text positions begin behind it."""

    offset_tokens = first.shape[1]
    refresh_tokens = None

    def __call__(self, layer: int, hidden_BTC: torch.Tensor) -> rm.KV:
        return rm.KV(cache.layers[layer].keys, cache.layers[layer].values)


with torch.inference_mode():
    remembered = lm.forward(second, memory=Before())
    in_context = lm.forward(torch.cat([first, second], dim=1))[:, first.shape[1] :]

difference = (remembered - in_context).abs().max().item()
print(f"largest difference of the logits: {difference:.1e}")
assert difference < 1e-3
