"""More losses for training with memory: look at where the answer stands, and keep the tokens that are answers.

All follow from the next-token loss in the end, but on a small model late: nothing tells a head what to look
for until it looks there by chance, and which tokens are kept has no gradient at all. Here the last memory
layer's attention from every token of an answer to the one that it continues with is a likelihood of its own, and so is
the chance that an answer token is among those that some head keeps, by the attention that it receives while its
reference is written (Memory3 §3.3). What stands before the words of the question ("Ada warned Bo." Who warned
Bo?) knows nothing of them when it is written: there the words look back at the answer while they are written, and
the question looks at the words one memory layer before it looks at the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.lm.attention import AttentionRecord
from remanence.types import ExplicitMemory

SOFTNESS = 0.4
STRAY = 0.5


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
    asked: Shared
    told: Shared
    behind: Shared
    after: After

    def to(self, device: torch.device) -> Hints:
        return Hints(**{name: part.to(device) for name, part in vars(self).items()})


@dataclass(frozen=True)
class Shared:
    """Words that a question and the passage that answers it have in common, and who should gather them.

    In `asked`, the question's last token looks at `target_FT` of its row; in `told`, the answer's first token
    looks at the words before it in its reference; in `behind`, every such word after it, up to the end of the
    sentence, looks back at the answer's first token. One entry per token F that should look.
    """

    row_F: Tensor
    position_F: Tensor
    target_FT: Tensor

    def to(self, device: torch.device) -> Shared:
        return Shared(self.row_F.to(device), self.position_F.to(device), self.target_FT.to(device))

    def of(self, rows: Sequence[int], width: int) -> Shared:
        """The entries of these rows, numbered anew in this order, with only the first `width` tokens of each."""
        same_FR = self.row_F[:, None] == torch.tensor(rows, device=self.row_F.device)
        here_F = same_FR.any(1)
        row_F = same_FR[here_F].int().argmax(1)
        return Shared(row_F, self.position_F[here_F], self.target_FT[here_F, :width])


@dataclass(frozen=True)
class After:
    """Where a question finds the words that stand after its answer.

    `words`: its last token, and the words' places in the reference `reference_F` of its row.
    """

    words: Shared
    reference_F: Tensor

    def to(self, device: torch.device) -> After:
        return After(self.words.to(device), self.reference_F.to(device))


def find_answers(
    references: Sequence[Sequence[list[int]]],
    ids: Sequence[list[int]],
    answers: Sequence[list[bool]],
    frequent: frozenset[int] = frozenset(),
    ends: frozenset[int] = frozenset(),
) -> Hints:
    """Searches every answer (a stretch where `answers` is true, its last token a newline) in its row's references.

    `frequent` tokens tell no passages apart; `ends` are those that end a sentence.
    """
    width = max(len(reference) for row in references for reference in row)
    value_RT = torch.zeros(sum(map(len, references)), width, dtype=torch.bool)
    found: list[tuple[int, int, int, int]] = []
    asked: list[tuple[int, int, list[int]]] = []
    told: list[tuple[int, int, list[int]]] = []
    behind: list[tuple[int, int, list[int]]] = []
    after: list[tuple[int, int, int, list[int]]] = []
    first = 0
    for r, row in enumerate(references):
        before = 0
        for start, end in _stretches(answers[r]):
            question, before = range(before, start), end
            wanted = ids[r][start : end - 1]
            places = [(i, at) for i, reference in enumerate(row) for at in _places(wanted, reference)]
            for i, at in places:
                value_RT[first + i, at : at + len(wanted)] = True
            if len({i for i, _ in places}) == 1:
                i, at = places[0]
                found += [(r, start - 1 + j, i, at + j) for j in range(len(wanted))]
                common = {ids[r][t] for t in question} & set(row[i]) - frequent
                asked.append((r, start - 1, [t for t in question if ids[r][t] in common]))
                told.append((first + i, at, [t for t in range(at) if row[i][t] in common]))
                rest = _sentence(row[i], at + len(wanted), ends)
                words = [t for t in rest if row[i][t] in common]
                behind += [(first + i, t, [at]) for t in words]
                after += [(r, start - 1, i, words)] if words else []
        first += len(row)
    row_Q, position_Q, reference_Q, token_Q = torch.tensor(found, dtype=torch.long).reshape(-1, 4).unbind(1)
    reference_F = torch.tensor([i for _, _, i, _ in after], dtype=torch.long)
    return Hints(
        row_Q,
        position_Q,
        reference_Q,
        token_Q,
        value_RT,
        asked=_shared(asked, len(ids[0])),
        told=_shared(told, width),
        behind=_shared(behind, width),
        after=After(_shared([(r, position, words) for r, position, _, words in after], width), reference_F),
    )


def _sentence(text: Sequence[int], start: int, ends: frozenset[int]) -> range:
    """Places from `start` to the end of its sentence."""
    return range(start, next((t for t in range(start, len(text)) if text[t] in ends), len(text)))


def _shared(entries: list[tuple[int, int, list[int]]], width: int) -> Shared:
    entries = [entry for entry in entries if entry[2]]
    target_FT = torch.zeros(len(entries), width, dtype=torch.bool)
    for f, (_, _, places) in enumerate(entries):
        target_FT[f, places] = True
    rows, positions = ([entry[i] for entry in entries] for i in (0, 1))
    return Shared(torch.tensor(rows, dtype=torch.long), torch.tensor(positions, dtype=torch.long), target_FT)


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
    shown: AttentionRecord, at: int, memories: Sequence[Sequence[ExplicitMemory]], num_lead: int, hints: Hints
) -> Tensor:
    """loss_Q of tokens to be copied that some head has kept: where to look, and where not.

    -log(attention on that token, mean over heads), and `STRAY` times -log(1 - attention on other memory tokens) of
    every head: a head that has not kept the token should look at no other.

    `shown` is attention at the memory layer number `at`; `memories[row]` stand after `num_lead` columns.
    """
    if not len(hints.row_Q):
        return torch.zeros(0, device=hints.row_Q.device)
    share_QHS, owner_QS, token_QGS = _memory_columns(shown, at, memories, num_lead, hints.row_Q, hints.position_Q)
    target_QGS = (owner_QS == hints.reference_Q[:, None])[:, None] & (token_QGS == hints.token_Q[:, None, None])
    kept_Q = target_QGS.flatten(1).any(1)
    mass_QH = _mass(share_QHS, target_QGS)[kept_Q]
    memory_QH = (share_QHS * (owner_QS >= 0)[:, None]).sum(-1)[kept_Q]
    stray_QH = (memory_QH - mass_QH).clamp(0, 1)
    return -(mass_QH.mean(-1) + 1e-6).log() - STRAY * (1 - stray_QH + 1e-3).log().mean(-1)


def pointing_loss(
    shown: AttentionRecord, at: int, memories: Sequence[Sequence[ExplicitMemory]], num_lead: int, after: After
) -> Tensor:
    """loss_Q: -log(attention of a question on the words after its answer, mean over heads), where a head kept them.

    The arguments are those of `looking_loss`.
    """
    words = after.words
    if not len(words.row_F):
        return torch.zeros(0, device=words.row_F.device)
    share_FHS, owner_FS, token_FGS = _memory_columns(shown, at, memories, num_lead, words.row_F, words.position_F)
    is_word_FGS = words.target_FT.gather(1, token_FGS.clamp(min=0).flatten(1).long()).view_as(token_FGS)
    target_FGS = is_word_FGS & (token_FGS >= 0) & (owner_FS == after.reference_F[:, None])[:, None]
    kept_F = target_FGS.flatten(1).any(1)
    return -(_mass(share_FHS, target_FGS)[kept_F].mean(-1) + 1e-6).log()


def _memory_columns(
    shown: AttentionRecord,
    at: int,
    memories: Sequence[Sequence[ExplicitMemory]],
    num_lead: int,
    row_Q: Tensor,
    position_Q: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """share_QHS of single query tokens; owner_QS and token_QGS of the columns that they see (see `_columns`)."""
    share_QHS = attention_of(shown, row_Q, position_Q)
    owner_BS, token_BGS = _columns(memories, at, num_lead, share_QHS.shape[-1])
    return share_QHS, owner_BS[row_Q], token_BGS[row_Q]


def _mass(share_QHS: Tensor, target_QGS: Tensor) -> Tensor:
    """mass_QH: attention of every query head on the targets of its KV head."""
    groups = share_QHS.shape[1] // target_QGS.shape[1]
    return (share_QHS * target_QGS.repeat_interleave(groups, 1)).sum(-1)


def attention_of(shown: AttentionRecord, row_Q: Tensor, position_Q: Tensor) -> Tensor:
    """share_QHS of single query tokens, float32; the chosen queries of a row are scored together."""
    B, H, T, D = shown.query_BHTD.shape
    S, groups = shown.key_BGSD.shape[2], H // shown.key_BGSD.shape[1]
    place_QB = row_Q[:, None] == torch.arange(B, device=row_Q.device)
    slot_Q = place_QB.cumsum(0).gather(1, row_Q[:, None]).squeeze(1) - 1
    position_BK = position_Q.new_zeros(B, int(slot_Q.max()) + 1).index_put((row_Q, slot_Q), position_Q)
    query_BHKD = shown.query_BHTD.gather(2, position_BK[:, None, :, None].expand(-1, H, -1, D))
    score_BHKS = (query_BHKD @ shown.key_BGSD.repeat_interleave(groups, 1).transpose(-1, -2)).float() * shown.scaling
    if shown.mask is None:
        seen_BKS = torch.arange(S, device=position_BK.device) <= position_BK[..., None] + S - T
    else:
        every_BTS = shown.mask[:, 0].expand(B, -1, -1)
        seen_BKS = every_BTS.gather(1, position_BK[..., None].expand(-1, -1, S))
    return score_BHKS.masked_fill(~seen_BKS[:, None], -torch.inf).softmax(-1)[row_Q, :, slot_Q]


def gathering_loss(layers: Sequence[AttentionRecord], shared: Shared, num_lead: int = 0) -> Tensor:
    """loss_F: -log(attention on the shared words, mean over the heads of all `layers`).

    `num_lead`: tokens in front of each row that `shared` does not count. Columns before those are memory.
    """
    if not layers or not len(shared.row_F):
        return torch.zeros(0, device=shared.row_F.device)
    masses = []
    for shown in layers:
        share_FHS = attention_of(shown, shared.row_F, shared.position_F + num_lead)
        masses.append((share_FHS[..., -shared.target_FT.shape[1] :] * shared.target_FT[:, None]).sum(-1))
    return -(torch.cat(masses, 1).mean(1) + 1e-6).log()


def _columns(memories: Sequence[Sequence[ExplicitMemory]], at: int, num_lead: int, width: int) -> tuple[Tensor, Tensor]:
    """owner_BS: which memory of its row a column belongs to; token_BGS: which token of it. -1: none."""
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


def keeping_loss(weight_BLGT: Tensor, value_RT: Tensor, num_kept: int) -> Tensor:
    """loss_N of answer tokens: -log(chance that some head keeps the token), mean over layers.

    `weight_BLGT`: attention received at the memory layers, with gradient; -inf at padding. `value_RT`: answer
    tokens. A head's chance is soft around the weight where its `num_kept` best end, so heads that keep the same
    tokens are pushed apart.
    """
    if not value_RT.any() or value_RT.shape[1] <= num_kept:
        return weight_BLGT.new_zeros(int(value_RT.sum()))
    log_BLGT = weight_BLGT.clamp(min=1e-6).log()
    edge_BLG1 = log_BLGT.detach().topk(num_kept + 1, dim=-1).values[..., -2:].mean(-1, keepdim=True)
    lost_BLT = (1 - ((log_BLGT - edge_BLG1) / SOFTNESS).sigmoid()).clamp(min=1e-6).log().sum(2)
    kept_BTL = (1 - lost_BLT.exp()).transpose(1, 2)
    return -(kept_BTL[value_RT] + 1e-4).log().mean(-1)
