"""A hint for small models: the token before one of an answer looks at the row of the token that it goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.lm.attention import AttentionRecord
from remanence.train.documents import MPlusDocument, Sentences
from remanence.train.hints import attention_of, find_answers
from remanence.train.live import LivePrefix
from remanence.train.losses import ANSWER


@dataclass(frozen=True)
class Looks:
    """One entry F per answer token that stands once in its chunk and has a row.

    `row_F`, `position_F`: the token before it in the batch; `write_F`, `at_F`: the row of the write that it became.
    """

    row_F: Tensor
    position_F: Tensor
    write_F: Tensor
    at_F: Tensor


def find_rows(documents: Sequence[MPlusDocument], sentences: Sentences, K: int) -> Looks:
    """`write_F` counts chunks of all documents, one after the other."""
    per = len(documents[0].chunks)
    pairs = list(zip(sentences.of_Q.tolist(), sentences.place_Q.tolist(), strict=True))
    told = [documents[d].chunks[place] if place >= 0 else [] for d, place in pairs]
    ids, answers = sentences.batch.ids_BT.tolist(), sentences.batch.kind_BT.eq(ANSWER).tolist()
    found = find_answers([[chunk] for chunk in told], ids, answers)
    length_Q = torch.tensor([len(chunk) for chunk in told])
    write_Q = torch.tensor([d * per + max(0, place) for d, place in pairs])
    at_F = K - length_Q[found.row_Q] + found.token_Q
    has_F = at_F >= 0  # of a chunk longer than K the first tokens become no rows
    return Looks(found.row_Q[has_F], found.position_Q[has_F], write_Q[found.row_Q][has_F], at_F[has_F])


def looked_at(shown: AttentionRecord, layer: int, prefix: LivePrefix, looks: Looks, place_W: Tensor) -> Tensor:
    """mass_FH: attention of every head on the row, for those F whose row the question has read at all."""
    column_F = _columns(layer, prefix, looks, place_W, shown)
    read_F = column_F >= 0
    share_FHS = attention_of(shown, looks.row_F[read_F], looks.position_F[read_F])
    index_FH1 = column_F[read_F][:, None, None].expand(-1, share_FHS.shape[1], 1)
    return share_FHS.gather(2, index_FH1).squeeze(2)


def _columns(layer: int, prefix: LivePrefix, looks: Looks, place_W: Tensor, shown: AttentionRecord) -> Tensor:
    """Where the rows stand among what attention sees; -1 for those that were not read."""
    K = prefix.method.config.write_rows
    if prefix.own_DLRC is not None:
        num_memory = shown.key_BGSD.shape[2] - shown.query_BHTD.shape[2]
        per = prefix.own_DLRC.shape[2] // K
        return num_memory - per * K + (looks.write_F % per) * K + looks.at_F
    wanted_F = place_W[looks.write_F] * K + looks.at_F
    same_FN = prefix.chosen[layer][looks.row_F] == wanted_F[:, None]
    return torch.where(same_FN.any(1), 1 + same_FN.int().argmax(1), -1)


def row_loss(
    seen: dict[int, AttentionRecord], prefix: LivePrefix, looks: Looks, place_W: Tensor
) -> tuple[Tensor, dict[int, float]]:
    """Mean over layers of -log(attention on the row, mean over heads), and that attention by layer."""
    losses, masses = [], {}
    for layer, shown in seen.items():
        if len(looks.row_F) and len(mass_FH := looked_at(shown, layer, prefix, looks, place_W)):
            losses.append(-(mass_FH.mean(1) + 1e-4).log().mean())
            masses[layer] = float(mass_FH.detach().mean())
    zero = prefix.method.modules(prefix.lm).bos_LC.sum() * 0.0
    return (torch.stack(losses).mean() if losses else zero), masses
