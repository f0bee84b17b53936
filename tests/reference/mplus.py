"""M+ from its equations, one token and one row at a time in float64: slow, obvious, and the oracle.

Memory is plain lists: `pool[layer]` holds rows oldest first, `long[layer]` holds (row, key, born). Nothing is shared
with remanence; adapters are merged into the weights by hand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.reference.decoder import Decoder

Rows = list[list[Tensor]]


class RoleDecoder(Decoder):
    """The decoder of a model with both adapters, with the weights W + alpha / rank B A of one role."""

    def __init__(self, model: Any, role: str, scale: float) -> None:
        super().__init__(model)
        merged = {}
        for name, weight in self.weights.items():
            if name.endswith(".base.weight"):
                module = name.removesuffix(".base.weight")
                down, up = self.weights[f"{module}.a.{role}"], self.weights[f"{module}.b.{role}"]
                merged[f"{module}.weight"] = weight + scale * up @ down
            elif ".a." not in name and ".b." not in name:
                merged[name] = weight
        self.weights = merged

    def layer_over(self, layer: int, seen: list[Tensor], live: list[Tensor]) -> list[Tensor]:
        """What a layer makes of `live`, each of which sees all of `seen` and the live ones up to itself."""
        projected = [self.project(layer, x_C) for x_C in [*seen, *live]]
        keys = [self.rotate(key_GD, position) for position, (_, key_GD, _) in enumerate(projected)]
        made = []
        for number, x_C in enumerate(live):
            position = len(seen) + number
            query_HD = self.rotate(projected[position][0], position)
            keys_GSD = [torch.stack([key[g] for key in keys[: position + 1]]) for g in range(self.num_kv_heads)]
            values_GSD = [
                torch.stack([value[g] for _, _, value in projected[: position + 1]]) for g in range(self.num_kv_heads)
            ]
            made.append(self.finish(layer, x_C, self.attend(query_HD, keys_GSD, values_GSD)))
        return made


def write(decoder: RoleDecoder, bos: list[Tensor], mark: Tensor, pool: Rows, ids: list[int], K: int) -> Rows:
    """The K new rows of every layer: outputs of the layer at the last K positions of [bos; last K rows; text]."""
    hidden, fresh = [decoder.embed(token) for token in ids], []
    for layer in range(decoder.num_layers):
        sequence = [bos[layer], *pool[layer][-K:], *hidden]
        sequence = [x_C + mark if at >= len(sequence) - K else x_C for at, x_C in enumerate(sequence)]
        num_live = max(K, len(ids))
        made = decoder.layer_over(layer, sequence[:-num_live], sequence[-num_live:])
        fresh.append(made[-K:])
        hidden = made[-len(ids) :]
    return fresh


def project(linears: list[Tensor], x_C: Tensor) -> Tensor:
    """Two maps without bias and SiLU between."""
    wide = linears[0] @ x_C
    return linears[1] @ (wide / (1 + torch.exp(-wide)))


def choose(queries: list[Tensor], long: list[tuple[Tensor, Tensor, int]], slots: int) -> list[Tensor]:
    """Of one layer's long-term memory the `slots` rows of the highest mean sigmoid, oldest first."""
    scored = []
    for number, (row, key, born) in enumerate(long):
        mean = sum(1 / (1 + torch.exp(-(query @ key))) for query in queries) / len(queries)
        scored.append((float(mean), number, born, row))
    best = sorted(scored, key=lambda entry: -entry[0])[:slots]
    return [row for _, _, _, row in sorted(best, key=lambda entry: entry[2])]


def read(
    decoder: RoleDecoder,
    bos: list[Tensor],
    query_maps: list[list[Tensor]],
    pool: Rows,
    long: list[list[tuple[Tensor, Tensor, int]]],
    ids: list[int],
    slots: int,
) -> list[Tensor]:
    """Logits of every token of a prompt that reads [bos; long-term rows; pool]."""
    hidden = [decoder.embed(token) for token in ids]
    for layer in range(decoder.num_layers):
        normed = [decoder.normalise(x_C, decoder.weight(layer, "input_layernorm")) for x_C in hidden]
        found = choose([project(query_maps[layer], x_C) for x_C in normed], long[layer], slots)
        assert len(found) == slots, "the oracle has no slots that nothing fills"
        hidden = decoder.layer_over(layer, [bos[layer], *found, *pool[layer]], hidden)
    return [decoder.logits(x_C) for x_C in hidden]
