"""An auxiliary loss for small models: the token before an answer token attends to the pool row of that token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.lm.attention import AttentionRecord
from remanence.train.core.attention_shares import attention_of
from remanence.train.core.losses import ANSWER
from remanence.train.examples.documents import MPlusDocument, Sentences
from remanence.train.memory3.auxiliary_losses import find_targets
from remanence.train.mplus.trainable_prefix import TrainablePrefix


@dataclass(frozen=True)
class RowTargets:
    """Entry F stands for an answer token that occurs once in its chunk and has a row in the pool (int64 tensors).

    `row_F`, `position_F`: the token before it, in the batch. `write_F`, `at_F`: its row, in the rows of a write.
    """

    row_F: Tensor
    position_F: Tensor
    write_F: Tensor
    at_F: Tensor


def find_row_targets(documents: Sequence[MPlusDocument], sentences: Sentences, K: int) -> RowTargets:
    """`K`: rows per write. `write_F` counts the chunks of all documents, one after the other."""
    per = len(documents[0].chunks)
    pairs = list(zip(sentences.of_Q.tolist(), sentences.place_Q.tolist(), strict=True))
    chunks = [documents[d].chunks[place] if place >= 0 else [] for d, place in pairs]
    ids, answers = sentences.batch.ids_BT.tolist(), sentences.batch.kind_BT.eq(ANSWER).tolist()
    places = find_targets([[chunk] for chunk in chunks], ids, answers)
    length_Q = torch.tensor([len(chunk) for chunk in chunks])
    write_Q = torch.tensor([d * per + max(0, place) for d, place in pairs])
    at_F = K - length_Q[places.row_Q] + places.token_Q
    has_F = at_F >= 0  # of a chunk of more than K tokens only the last K have rows
    return RowTargets(places.row_Q[has_F], places.position_Q[has_F], write_Q[places.row_Q][has_F], at_F[has_F])


def row_attention(
    record: AttentionRecord, layer: int, prefix: TrainablePrefix, row_targets: RowTargets, place_W: Tensor
) -> Tensor:
    """mass_FH: attention of each head to the row, for those F whose row the question has read."""
    column_F = _columns(layer, prefix, row_targets, place_W, record)
    read_F = column_F >= 0
    share_FHS = attention_of(record, row_targets.row_F[read_F], row_targets.position_F[read_F])
    index_FH1 = column_F[read_F][:, None, None].expand(-1, share_FHS.shape[1], 1)
    return share_FHS.gather(2, index_FH1).squeeze(2)


def _columns(
    layer: int, prefix: TrainablePrefix, row_targets: RowTargets, place_W: Tensor, record: AttentionRecord
) -> Tensor:
    """The columns of the rows among the keys; -1 for rows that were not read."""
    K = prefix.method.config.write_rows
    if prefix.own_DLRC is not None:
        num_memory = record.key_BGSD.shape[2] - record.query_BHTD.shape[2]
        per = prefix.own_DLRC.shape[2] // K
        return num_memory - per * K + (row_targets.write_F % per) * K + row_targets.at_F
    wanted_F = place_W[row_targets.write_F] * K + row_targets.at_F
    same_FN = prefix.chosen[layer][row_targets.row_F] == wanted_F[:, None]
    return torch.where(same_FN.any(1), 1 + same_FN.int().argmax(1), -1)


def row_attention_loss(
    records: dict[int, AttentionRecord], prefix: TrainablePrefix, row_targets: RowTargets, place_W: Tensor
) -> tuple[Tensor, dict[int, float]]:
    """(mean over layers of -log(attention to the row, mean over heads), that attention by layer)."""
    losses, masses = [], {}
    for layer, record in records.items():
        if len(row_targets.row_F) and len(mass_FH := row_attention(record, layer, prefix, row_targets, place_W)):
            losses.append(-(mass_FH.mean(1) + 1e-4).log().mean())
            masses[layer] = float(mass_FH.detach().mean())
    zero = prefix.method.modules(prefix.lm).bos_LC.sum() * 0.0
    return (torch.stack(losses).mean() if losses else zero), masses
