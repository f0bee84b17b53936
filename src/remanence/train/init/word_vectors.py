"""Word vectors for the initial embeddings, from how often tokens occur near each other in running text.

A small model sees few wordings. Books tell it before the first step that "resides" is used like "lives". The method is
positive pointwise mutual information and a truncated singular value decomposition (Levy and Goldberg 2014); it takes a
minute.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 4
"""The greatest distance of neighbours, in tokens."""
SMOOTHING = 0.75
"""Exponent of context counts."""


def word_vectors(lines: Iterable[Sequence[int]], vocab_size: int, width: int, seed: int = 0) -> Tensor:
    """vector_VC (float32) of length sqrt(width); zeros for tokens that never occur.

    `lines`: token ids of stretches of text. Neighbours are tokens at most WINDOW apart, weighted by 1/distance.
    """
    ids = [torch.tensor([*line, *[-1] * WINDOW]) for line in lines]
    count_VV = _neighbours(torch.cat(ids) if ids else torch.zeros(0, dtype=torch.long), vocab_size)
    shifted_VV = _mutual_information(count_VV)
    torch.manual_seed(seed)
    u_VR, s_R, _ = torch.svd_lowrank(shifted_VV, q=min(width, vocab_size), niter=3)
    vector_VC = functional.pad(u_VR * s_R.sqrt(), (0, width - len(s_R)))
    seen_V = count_VV.sum(1) > 0
    vector_VC = vector_VC - vector_VC[seen_V].mean(0) if seen_V.any() else vector_VC
    return functional.normalize(vector_VC, dim=1) * width**0.5 * seen_V[:, None]


def _neighbours(ids_N: Tensor, vocab_size: int) -> Tensor:
    count_P = torch.zeros(vocab_size * vocab_size)
    for distance in range(1, WINDOW + 1):
        first_N, second_N = ids_N[:-distance], ids_N[distance:]
        together = (first_N >= 0) & (second_N >= 0)
        pair_N = first_N[together] * vocab_size + second_N[together]
        count_P += torch.bincount(pair_N, minlength=len(count_P)) / distance
    count_VV = count_P.view(vocab_size, vocab_size)
    return count_VV + count_VV.T


def _mutual_information(count_VV: Tensor) -> Tensor:
    """The positive part of log p(a, b) / (p(a) p(b)), with context counts to the power of SMOOTHING."""
    near_V = count_VV.sum(0) ** SMOOTHING
    expected_VV = torch.outer(count_VV.sum(1), near_V / near_V.sum().clamp(min=1e-9))
    return (count_VV / expected_VV.clamp(min=1e-9)).clamp(min=1.0).log()
