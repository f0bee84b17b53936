"""Drop policies: which rows leave the pool at a write, at random (M+ §3.1) or by importance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from remanence.errors import InputError
from remanence.lm.hidden_states import norm_of, queries, rows_to_kv
from remanence.lm.lm import LM
from remanence.methods.mplus.modules import MPlusModules
from remanence.methods.mplus.retriever import scores


@dataclass(frozen=True)
class Full:
    """What a drop policy sees: the pool's rows, the fresh rows, and the pool's own generator."""

    lm: LM
    modules: MPlusModules
    row_LNC: Tensor
    fresh_LKC: Tensor
    generator: torch.Generator


def at_random(full: Full) -> Tensor:
    """dropped_LK (int64, ascending): K random places in each layer, drawn as in the authors' code."""
    L, N, _ = full.row_LNC.shape
    K = full.fresh_LKC.shape[1]
    return torch.stack([torch.randperm(N, generator=full.generator)[N - K :].sort().values for _ in range(L)])


def by_retrieval(full: Full) -> Tensor:
    """dropped_LK: rows that the writer's retriever scores low for the fresh rows leave sooner."""
    return _weighted(full, _per_layer(full, _retrieval_mass))


def by_attention(full: Full) -> Tensor:
    """dropped_LK: rows that get little attention of the fresh rows, by the reader's queries and keys, leave sooner."""
    return _weighted(full, _per_layer(full, _attention_mass))


def by_redundancy(full: Full) -> Tensor:
    """dropped_LK: rows that are similar to a fresh row (cosine) leave sooner."""
    return _weighted(full, 1.0 - _per_layer(full, _likeness))


POLICIES: dict[str, Callable[[Full], Tensor]] = {
    "random": at_random,
    "retrieval": by_retrieval,
    "attention": by_attention,
    "redundancy": by_redundancy,
}


def policy(name: str) -> Callable[[Full], Tensor]:
    """The policy of this name. Raises InputError for a name that does not exist."""
    if name not in POLICIES:
        raise InputError(f"no drop policy is called {name!r}", f"use one of {', '.join(POLICIES)}")
    return POLICIES[name]


def _per_layer(full: Full, worth: Callable[[Full, int], Tensor]) -> Tensor:
    return torch.stack([worth(full, layer) for layer in range(len(full.row_LNC))]).float().cpu()


def _weighted(full: Full, worth_LN: Tensor) -> Tensor:
    """K places per layer, drawn without replacement with weights exp(-z), z the z-score of a row's worth."""
    spread_L1 = worth_LN.std(1, keepdim=True).clamp(min=1e-6)
    z_LN = (worth_LN - worth_LN.mean(1, keepdim=True)) / spread_L1
    gumbel_LN = -(-torch.rand(worth_LN.shape, generator=full.generator).clamp(1e-9, 1 - 1e-6).log()).log()
    return (gumbel_LN - z_LN).topk(full.fresh_LKC.shape[1], dim=1).indices.sort(1).values


def _retrieval_mass(full: Full, layer: int) -> Tensor:
    norm = norm_of(full.lm.model, layer)
    query_KE = full.modules.encoder_query[layer](norm(full.fresh_LKC[layer]))
    return scores(query_KE[None], full.modules.key[layer](norm(full.row_LNC[layer])))[0]


def _attention_mass(full: Full, layer: int) -> Tensor:
    """worth_N: attention of the fresh rows to the pool's, mean over heads and fresh rows, all at position 0."""
    model, row_NC, fresh_KC = full.lm.model, full.row_LNC[layer], full.fresh_LKC[layer]
    still = torch.zeros(len(row_NC), dtype=torch.long, device=row_NC.device)
    key_GND = rows_to_kv(model, layer, row_NC[None], still, "read").key_BGMD[0]
    query_HKD = queries(model, layer, norm_of(model, layer)(fresh_KC)[None], still[: len(fresh_KC)], "read")[0]
    key_HND = key_GND.repeat_interleave(len(query_HKD) // len(key_GND), 0)
    return (query_HKD @ key_HND.transpose(-1, -2) * key_HND.shape[-1] ** -0.5).float().softmax(-1).mean((0, 1))


def _likeness(full: Full, layer: int) -> Tensor:
    rows, fresh = (functional.normalize(part[layer].float(), dim=-1) for part in (full.row_LNC, full.fresh_LKC))
    return (rows @ fresh.T).amax(1)
