"""Two more losses for training with memory: look at where the answer stands, and keep the tokens that are answers.

Both follow from the next-token loss in the end, but on a small model late: nothing tells a head what to look
for until it looks there by chance, and which tokens are kept has no gradient at all. Here the last memory
layer's attention from every token of an answer to the one that it continues with is a likelihood of its own, and so is
the share of attention that answer tokens receive while a reference is written, which is what selects them
(Memory3 §3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.lm.seam import Seen
from remanence.types import ExplicitMemory


@dataclass(frozen=True)
class Hints:
    """Where answers stand. One entry per answer token Q that was found in one reference.

    `row_Q`, `position_Q`: the token before it. `reference_Q` (within its row), `token_Q`: where it is to be
    copied from. `value_RT`: answer tokens of every reference of the batch, in order, padded on the right.
    """

    row_Q: Tensor
    position_Q: Tensor
    reference_Q: Tensor
    token_Q: Tensor
    value_RT: Tensor


def find_answers(
    references: Sequence[Sequence[list[int]]], ids: Sequence[list[int]], answers: Sequence[list[bool]]
) -> Hints:
    """Searches every answer (a stretch where `answers` is true, its last token a newline) in its row's references."""
    width = max(len(reference) for row in references for reference in row)
    value_RT = torch.zeros(sum(map(len, references)), width, dtype=torch.bool)
    found: list[tuple[int, int, int, int]] = []
    first = 0
    for r, row in enumerate(references):
        for start, end in _stretches(answers[r]):
            wanted = ids[r][start : end - 1]
            places = [(i, at) for i, reference in enumerate(row) for at in _places(wanted, reference)]
            for i, at in places:
                value_RT[first + i, at : at + len(wanted)] = True
            if len({i for i, _ in places}) == 1:
                i, at = places[0]
                found += [(r, start - 1 + j, i, at + j) for j in range(len(wanted))]
        first += len(row)
    columns = torch.tensor(found, dtype=torch.long).reshape(-1, 4).unbind(1)
    return Hints(*columns, value_RT)


def _stretches(flags: Sequence[bool]) -> list[tuple[int, int]]:
    found, start = [], None
    for i, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = i
        elif not flag and start is not None:
            found.append((start, i))
            start = None
    return found


def _places(wanted: list[int], text: list[int]) -> list[int]:
    if not wanted:
        return []
    size = len(wanted)
    return [i for i in range(len(text) - size + 1) if text[i] == wanted[0] and text[i : i + size] == wanted]


def looking_loss(
    shown: Seen, at: int, memories: Sequence[Sequence[ExplicitMemory]], num_lead: int, hints: Hints
) -> Tensor:
    """Mean of -log(attention on the token to be copied, mean over heads) over tokens that some head has kept.

    `shown` is attention at the memory layer number `at`; `memories[row]` stand after `num_lead` columns.
    """
    query_QHD = shown.query_BHTD[hints.row_Q, :, hints.position_Q].float()
    key_QGSD = shown.key_BGSD[hints.row_Q].float()
    groups = query_QHD.shape[1] // key_QGSD.shape[1]
    score_QHS = torch.einsum("qhd,qhsd->qhs", query_QHD, key_QGSD.repeat_interleave(groups, 1)) * shown.scaling
    assert shown.mask is not None
    mask_BTS = shown.mask[:, 0].expand(len(shown.query_BHTD), -1, -1)
    score_QHS = score_QHS.masked_fill(~mask_BTS[hints.row_Q, hints.position_Q][:, None], -torch.inf)
    owner_BS, token_BGS = _columns(memories, at, num_lead, score_QHS.shape[-1])
    target_QGS = (owner_BS[hints.row_Q] == hints.reference_Q[:, None])[:, None]
    target_QGS = target_QGS & (token_BGS[hints.row_Q] == hints.token_Q[:, None, None])
    kept_Q = target_QGS.any(-1).any(-1)
    if not kept_Q.any():
        return score_QHS.new_zeros(())
    mass_QH = (score_QHS.softmax(-1) * target_QGS.repeat_interleave(groups, 1)).sum(-1)
    return -(mass_QH.mean(-1)[kept_Q] + 1e-6).log().mean()


def _columns(memories: Sequence[Sequence[ExplicitMemory]], at: int, num_lead: int, width: int) -> tuple[Tensor, Tensor]:
    """owner_BS: which memory of its row a column belongs to; token_BGS: which token of it. -1: none."""
    G = memories[0][0].index_LGN.shape[1]
    owner_BS = torch.full((len(memories), width), -1)
    token_BGS = torch.full((len(memories), G, width), -1)
    for r, row in enumerate(memories):
        column = num_lead
        for i, memory in enumerate(row):
            index_GN = memory.index_LGN[at]
            owner_BS[r, column : column + index_GN.shape[1]] = i
            token_BGS[r, :, column : column + index_GN.shape[1]] = index_GN
            column += index_GN.shape[1]
    return owner_BS, token_BGS


def keeping_loss(weights_BGT: Sequence[Tensor], hints: Hints) -> Tensor:
    """Mean of -log(share of received attention that answer tokens get) over references, heads and layers.

    `weights_BGT`: attention received at each memory layer, with gradient; 0 at padding.
    """
    value_RT = hints.value_RT
    chosen = value_RT.any(-1)
    losses = []
    for weight_BGT in weights_BGT:
        share_BG = (weight_BGT * value_RT[:, None]).sum(-1) / weight_BGT.sum(-1).clamp(min=1e-6)
        losses.append(-(share_BG[chosen] + 1e-4).log().mean())
    return torch.stack(losses).mean() if chosen.any() else weights_BGT[0].new_zeros(())
