"""How much attention goes to memory where an answer or a text is read with it, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from remanence.lm.attention import AttentionRecord
from remanence.train.hints import attention_of


def memory_shares(
    seen: Mapping[int, AttentionRecord], num_tokens: int, num_lead: int, index_N: Tensor
) -> dict[str, float]:
    """`share_memory_layer_I` of every layer in `seen`, 0 to 1: mean over query heads and the positions `index_N`.

    `index_N` is into B·`num_tokens` flattened positions. Memory is what stands before them, but for the first
    `num_lead` columns (`<s>Reference:`, or M+'s first vector), which every attention sinks into.
    """
    if not len(index_N):
        return {}
    found = {}
    for layer, shown in sorted(seen.items()):
        share_QHS = attention_of(shown, index_N // num_tokens, index_N % num_tokens)
        mass = share_QHS[..., num_lead : share_QHS.shape[-1] - num_tokens].sum(-1).mean()
        found[f"share_memory_layer_{layer}"] = round(float(mass), 4)
    return found
