"""Memory³ (arXiv 2407.01178 §3) from its equations: no masks, no batches, one token after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.reference.decoder import Decoder


class Text:
    """A text as it grows: what each layer keeps of it for plain causal attention."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        layers = range(decoder.num_layers)
        self.queries: list[list[Tensor]] = [[] for _ in layers]  # before RoPE, (H, D) each
        self.plain_keys: list[list[Tensor]] = [[] for _ in layers]  # before RoPE, (G, D) each
        self.keys: list[list[Tensor]] = [[] for _ in layers]  # after RoPE
        self.values: list[list[Tensor]] = [[] for _ in layers]

    def step(self, token: int, position: int, seen: Sequence[AttentionRecord] = ()) -> Tensor:
        """Logits after `token` at `position`; each layer also sees what stands in `seen`."""
        d = self.decoder
        x_C = d.embed(token)
        for layer in range(d.num_layers):
            query_HD, key_GD, value_GD = d.project(layer, x_C)
            self.queries[layer].append(query_HD)
            self.plain_keys[layer].append(key_GD)
            self.keys[layer].append(d.rotate(key_GD, position))
            self.values[layer].append(value_GD)
            keys, values = [], []
            for group in range(d.num_kv_heads):
                before = [other.slots[layer][group] for other in seen if layer in other.slots]
                own_keys = [key[group] for key in self.keys[layer]]
                own_values = [value[group] for value in self.values[layer]]
                keys.append(torch.stack([key for slots in before for key, _ in slots] + own_keys))
                values.append(torch.stack([value for slots in before for _, value in slots] + own_values))
            x_C = d.finish(layer, x_C, d.attend(d.rotate(query_HD, position), keys, values))
        return d.logits(x_C)


@dataclass
class AttentionRecord:
    """slots[layer][group]: pairs of a rotated key and a value that a text sees besides itself."""

    slots: dict[int, list[list[tuple[Tensor, Tensor]]]]


@dataclass
class Memory:
    """What is kept of a reference: indices[layer][group], and all its keys (before RoPE) and values to take from."""

    indices: dict[int, list[list[int]]]
    plain_keys: dict[int, list[Tensor]]
    values: dict[int, list[Tensor]]
    num_tokens: int


def plain(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """Logits (T, V) of the language model without memory."""
    text = Text(decoder)
    return torch.stack([text.step(token, position) for position, token in enumerate(ids)])


def lead(decoder: Decoder, prefix: Sequence[int]) -> AttentionRecord:
    """`<s>Reference:`, seen at every layer."""
    text = Text(decoder)
    for position, token in enumerate(prefix):
        text.step(token, position)
    return AttentionRecord(
        {
            layer: [
                [(key[g], value[g]) for key, value in zip(text.keys[layer], text.values[layer], strict=True)]
                for g in range(decoder.num_kv_heads)
            ]
            for layer in range(decoder.num_layers)
        }
    )


def received(queries: Sequence[Tensor], keys: Sequence[Tensor], group: int, selection: str) -> list[float]:
    """w_j = sum over the group's query heads and over i of softmax_j(q_i k_j / sqrt(D)), or of exp instead (§3.3)."""
    num_heads, width = queries[0].shape
    size = num_heads // keys[0].shape[0]
    weight = [0.0] * len(keys)
    key_TD = torch.stack([key[group] for key in keys])
    for head in range(group * size, (group + 1) * size):
        for query in queries:
            exp_T = torch.exp(key_TD @ query[head] / width**0.5)
            share_T = exp_T if selection == "exp" else exp_T / exp_T.sum()
            weight = [w + float(s) for w, s in zip(weight, share_T, strict=True)]
    return weight


def heaviest(weight: Sequence[float], kept: int | None) -> list[int]:
    """Indices of the `kept` largest weights in text order; of equals the first."""
    order = sorted(range(len(weight)), key=lambda j: (-weight[j], j))
    return sorted(order[:kept])


def write(
    decoder: Decoder,
    prefix: Sequence[int],
    reference: Sequence[int],
    layers: Sequence[int],
    kept: int | None = 8,
    selection: str = "softmax",
) -> Memory:
    """Runs `<s>Reference:` + reference; the prefix takes no part in the selection."""
    text, b = Text(decoder), len(prefix)
    for position, token in enumerate([*prefix, *reference]):
        text.step(token, position)
    indices = {}
    for layer in layers:
        queries, keys = text.queries[layer][b:], text.plain_keys[layer][b:]
        groups = range(decoder.num_kv_heads)
        indices[layer] = [heaviest(received(queries, keys, group, selection), kept) for group in groups]
    plain_keys = {layer: text.plain_keys[layer][b:] for layer in layers}
    return Memory(indices, plain_keys, {layer: text.values[layer][b:] for layer in layers}, len(reference))


def place(decoder: Decoder, memory: Memory, start: int) -> AttentionRecord:
    """The memory's kept tokens with its reference beginning at position `start`."""
    return AttentionRecord(
        {
            layer: [
                [
                    (decoder.rotate(memory.plain_keys[layer][j], start + j)[group], memory.values[layer][j][group])
                    for j in kept
                ]
                for group, kept in enumerate(groups)
            ]
            for layer, groups in memory.indices.items()
        }
    )


def read(
    decoder: Decoder,
    prefix: Sequence[int],
    ids: Sequence[int],
    seen_by_token: Sequence[Sequence[AttentionRecord]],
    offset: int,
) -> Tensor:
    """Logits (T, V), token by token: token t sees the prefix, `seen_by_token[t]` and the text before it."""
    text, constant = Text(decoder), lead(decoder, prefix)
    return torch.stack(
        [
            text.step(token, offset + t, [constant, *seen])
            for t, (token, seen) in enumerate(zip(ids, seen_by_token, strict=True))
        ]
    )
