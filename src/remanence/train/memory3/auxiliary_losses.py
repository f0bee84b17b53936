"""Auxiliary losses of training with memory: attend to the answer in a memory, and select the tokens of answers.

A large model learns both from the next-token loss. A small one learns them late: a head gets no gradient towards the
answer until it attends there by chance, and the selection of tokens has no gradient at all. So two quantities get a
likelihood of their own: the attention of the last memory layer from each answer token to the token that follows it in
the reference, and the chance that some head selects an answer token, by the attention that this token receives while
its reference is written (Memory³ §3.3).

An answer that stands before the words of its question ("Ada warned Bo." Who warned Bo?) does not know these words when
it is written. There the words attend back to the answer while they are written, and the question attends to the words
one memory layer before it attends to the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.lm.attention import AttentionRecord
from remanence.train.core.attention_shares import attention_of
from remanence.types import ExplicitMemory

SOFTNESS = 0.4
"""Width of the soft threshold of selection, in nats of attention weight."""
STRAY = 0.5
"""Weight of the loss on attention to other memory tokens."""


@dataclass(frozen=True)
class AuxiliaryTargets:
    """Places of answers. Entry Q stands for an answer token that occurs in exactly one reference (int64 tensors).

    - `row_Q`, `position_Q`: the token before it, in the batch. `reference_Q` (within its row), `token_Q`: its place
      in the reference.
    - `value_RT` (bool): the answer tokens of all references of the batch, in order, padded on the right.
    - `in_question`: the question's last token attends to the shared words in its row.
    - `before_answer`: the answer's first token attends to the shared words before it in its reference.
    - `behind_answer`: the shared words behind it, up to the end of the sentence, attend to the answer's first token.
    - `after_answer`: the question's last token attends to these words in the memory.
    """

    row_Q: Tensor
    position_Q: Tensor
    reference_Q: Tensor
    token_Q: Tensor
    value_RT: Tensor
    in_question: SharedWords
    before_answer: SharedWords
    behind_answer: SharedWords
    after_answer: WordsAfter

    def to(self, device: torch.device) -> AuxiliaryTargets:
        return AuxiliaryTargets(**{name: part.to(device) for name, part in vars(self).items()})


@dataclass(frozen=True)
class SharedWords:
    """Words that a question and the passage with its answer share. Entry F stands for a token that should attend.

    `row_F`, `position_F` (int64): its place. `target_FT` (bool): the tokens of its row that it should attend to.
    """

    row_F: Tensor
    position_F: Tensor
    target_FT: Tensor

    def to(self, device: torch.device) -> SharedWords:
        return SharedWords(self.row_F.to(device), self.position_F.to(device), self.target_FT.to(device))

    def of(self, rows: Sequence[int], width: int) -> SharedWords:
        """The entries of these rows, renumbered in this order, with the first `width` tokens of each."""
        same_FR = self.row_F[:, None] == torch.tensor(rows, device=self.row_F.device)
        here_F = same_FR.any(1)
        row_F = same_FR[here_F].int().argmax(1)
        return SharedWords(row_F, self.position_F[here_F], self.target_FT[here_F, :width])


@dataclass(frozen=True)
class WordsAfter:
    """Where a question finds the shared words behind its answer.

    `words`: the question's last token, and the places of the words in reference `reference_F` (int64) of its row.
    """

    words: SharedWords
    reference_F: Tensor

    def to(self, device: torch.device) -> WordsAfter:
        return WordsAfter(self.words.to(device), self.reference_F.to(device))


def find_targets(
    references: Sequence[Sequence[list[int]]],
    ids: Sequence[list[int]],
    answers: Sequence[list[bool]],
    frequent: frozenset[int] = frozenset(),
    ends: frozenset[int] = frozenset(),
) -> AuxiliaryTargets:
    """Searches every answer in the references of its row.

    `references[row]`: token ids of each reference; `ids[row]`: the row's tokens. An answer is a stretch where
    `answers[row]` is true, and its last token is a line feed. `frequent`: tokens that are too common to count as shared
    words. `ends`: tokens that end a sentence.
    """
    width = max(len(reference) for row in references for reference in row)
    value_RT = torch.zeros(sum(map(len, references)), width, dtype=torch.bool)
    copies: list[tuple[int, int, int, int]] = []
    in_question: list[tuple[int, int, list[int]]] = []
    before_answer: list[tuple[int, int, list[int]]] = []
    behind_answer: list[tuple[int, int, list[int]]] = []
    after_answer: list[tuple[int, int, int, list[int]]] = []
    first = 0
    for r, row in enumerate(references):
        before = 0
        for start, end in _stretches(answers[r]):
            question, before = range(before, start), end
            answer = ids[r][start : end - 1]
            places = [(i, at) for i, reference in enumerate(row) for at in _places(answer, reference)]
            for i, at in places:
                value_RT[first + i, at : at + len(answer)] = True
            if len({i for i, _ in places}) == 1:
                i, at = places[0]
                copies += [(r, start - 1 + j, i, at + j) for j in range(len(answer))]
                common = {ids[r][t] for t in question} & set(row[i]) - frequent
                in_question.append((r, start - 1, [t for t in question if ids[r][t] in common]))
                before_answer.append((first + i, at, [t for t in range(at) if row[i][t] in common]))
                rest = _sentence(row[i], at + len(answer), ends)
                words = [t for t in rest if row[i][t] in common]
                behind_answer += [(first + i, t, [at]) for t in words]
                after_answer += [(r, start - 1, i, words)] if words else []
        first += len(row)
    row_Q, position_Q, reference_Q, token_Q = torch.tensor(copies, dtype=torch.long).reshape(-1, 4).unbind(1)
    reference_F = torch.tensor([i for _, _, i, _ in after_answer], dtype=torch.long)
    return AuxiliaryTargets(
        row_Q,
        position_Q,
        reference_Q,
        token_Q,
        value_RT,
        in_question=_shared(in_question, len(ids[0])),
        before_answer=_shared(before_answer, width),
        behind_answer=_shared(behind_answer, width),
        after_answer=WordsAfter(_shared([(r, t, words) for r, t, _, words in after_answer], width), reference_F),
    )


def _sentence(text: Sequence[int], start: int, ends: frozenset[int]) -> range:
    """Places from `start` to the end of its sentence."""
    return range(start, next((t for t in range(start, len(text)) if text[t] in ends), len(text)))


def _shared(entries: list[tuple[int, int, list[int]]], width: int) -> SharedWords:
    entries = [entry for entry in entries if entry[2]]
    target_FT = torch.zeros(len(entries), width, dtype=torch.bool)
    for f, (_, _, places) in enumerate(entries):
        target_FT[f, places] = True
    rows, positions = ([entry[i] for entry in entries] for i in (0, 1))
    return SharedWords(torch.tensor(rows, dtype=torch.long), torch.tensor(positions, dtype=torch.long), target_FT)


def _stretches(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """(start, end) of all runs of True."""
    stretches, start = [], None
    for i, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = i
        elif not flag and start is not None:
            stretches.append((start, i))
            start = None
    return stretches


def _places(answer: list[int], text: list[int]) -> list[int]:
    if not answer:
        return []
    size = len(answer)
    return [i for i in range(len(text) - size + 1) if text[i] == answer[0] and text[i : i + size] == answer]


def answer_attention_loss(
    record: AttentionRecord,
    at: int,
    memories: Sequence[Sequence[ExplicitMemory]],
    num_lead: int,
    places: AuxiliaryTargets,
) -> Tensor:
    """loss_Q of the answer tokens that some head has selected.

    -log(attention to the token, mean over heads), and `STRAY` times -log(1 - attention to other memory tokens) of each
    head: a head that has not selected the token should attend to no other.

    `record`: the attention at memory layer number `at`. `memories[row]` stand after `num_lead` columns.
    """
    if not len(places.row_Q):
        return torch.zeros(0, device=places.row_Q.device)
    share_QHS, owner_QS, token_QGS = _memory_columns(record, at, memories, num_lead, places.row_Q, places.position_Q)
    target_QGS = (owner_QS == places.reference_Q[:, None])[:, None] & (token_QGS == places.token_Q[:, None, None])
    kept_Q = target_QGS.flatten(1).any(1)
    mass_QH = _mass(share_QHS, target_QGS)[kept_Q]
    memory_QH = (share_QHS * (owner_QS >= 0)[:, None]).sum(-1)[kept_Q]
    stray_QH = (memory_QH - mass_QH).clamp(0, 1)
    return -(mass_QH.mean(-1) + 1e-6).log() - STRAY * (1 - stray_QH + 1e-3).log().mean(-1)


def word_pointing_loss(
    record: AttentionRecord, at: int, memories: Sequence[Sequence[ExplicitMemory]], num_lead: int, places: WordsAfter
) -> Tensor:
    """loss_Q: -log(attention of a question to the words behind its answer, mean over heads), if a head selected them.

    The arguments are those of `looking_loss`.
    """
    words = places.words
    if not len(words.row_F):
        return torch.zeros(0, device=words.row_F.device)
    share_FHS, owner_FS, token_FGS = _memory_columns(record, at, memories, num_lead, words.row_F, words.position_F)
    is_word_FGS = words.target_FT.gather(1, token_FGS.clamp(min=0).flatten(1).long()).view_as(token_FGS)
    target_FGS = is_word_FGS & (token_FGS >= 0) & (owner_FS == places.reference_F[:, None])[:, None]
    kept_F = target_FGS.flatten(1).any(1)
    return -(_mass(share_FHS, target_FGS)[kept_F].mean(-1) + 1e-6).log()


def _memory_columns(
    record: AttentionRecord,
    at: int,
    memories: Sequence[Sequence[ExplicitMemory]],
    num_lead: int,
    row_Q: Tensor,
    position_Q: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """share_QHS of Q query tokens; owner_QS and token_QGS of the columns that they see (see `_columns`)."""
    share_QHS = attention_of(record, row_Q, position_Q)
    owner_BS, token_BGS = _columns(memories, at, num_lead, share_QHS.shape[-1])
    return share_QHS, owner_BS[row_Q], token_BGS[row_Q]


def _mass(share_QHS: Tensor, target_QGS: Tensor) -> Tensor:
    """mass_QH: attention of each query head to the targets of its KV head."""
    groups = share_QHS.shape[1] // target_QGS.shape[1]
    return (share_QHS * target_QGS.repeat_interleave(groups, 1)).sum(-1)


def word_attention_loss(layers: Sequence[AttentionRecord], shared: SharedWords, num_lead: int = 0) -> Tensor:
    """loss_F: -log(attention to the shared words, mean over the heads of all `layers`).

    `num_lead`: the number of tokens in front of each row that `shared` does not count. Columns before are memory.
    """
    if not layers or not len(shared.row_F):
        return torch.zeros(0, device=shared.row_F.device)
    masses = []
    for record in layers:
        share_FHS = attention_of(record, shared.row_F, shared.position_F + num_lead)
        masses.append((share_FHS[..., -shared.target_FT.shape[1] :] * shared.target_FT[:, None]).sum(-1))
    return -(torch.cat(masses, 1).mean(1) + 1e-6).log()


def _columns(memories: Sequence[Sequence[ExplicitMemory]], at: int, num_lead: int, width: int) -> tuple[Tensor, Tensor]:
    """owner_BS: the memory (of its row) that a column belongs to; token_BGS: the token of its reference. -1: none."""
    example = memories[0][0].index_LGN
    owner_BS = torch.full((len(memories), width), -1)
    token_BGS = torch.full((len(memories), example.shape[1], width), -1, device=example.device)
    for r, row in enumerate(memories):
        column = num_lead
        for i, memory in enumerate(row):
            index_GN = memory.index_LGN[at]
            owner_BS[r, column : column + index_GN.shape[1]] = i
            token_BGS[r, :, column : column + index_GN.shape[1]] = index_GN
            column += index_GN.shape[1]
    return owner_BS.to(example.device), token_BGS


def selection_loss(weight_BLGT: Tensor, value_RT: Tensor, num_kept: int) -> Tensor:
    """loss_N of N answer tokens: -log(chance that some head selects the token), mean over layers.

    `weight_BLGT`: attention received at the memory layers, with gradient; -inf at padding. `value_RT` (bool): answer
    tokens. A head's chance is a sigmoid around the weight of its `num_kept`-th token, which pushes apart heads that
    select the same tokens.
    """
    if not value_RT.any() or value_RT.shape[1] <= num_kept:
        return weight_BLGT.new_zeros(int(value_RT.sum()))
    log_BLGT = weight_BLGT.clamp(min=1e-6).log()
    edge_BLG1 = log_BLGT.detach().topk(num_kept + 1, dim=-1).values[..., -2:].mean(-1, keepdim=True)
    lost_BLT = (1 - ((log_BLGT - edge_BLG1) / SOFTNESS).sigmoid()).clamp(min=1e-6).log().sum(2)
    kept_BTL = (1 - lost_BLT.exp()).transpose(1, 2)
    return -(kept_BTL[value_RT] + 1e-4).log().mean(-1)
