"""Which tokens of a batch see which memories, and in which columns of the prefix these stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from remanence.types import ExplicitMemory


@dataclass(frozen=True)
class Group:
    """The memories that the text from token `start` on sees, until the next group starts."""

    start: int
    memories: tuple[ExplicitMemory, ...]


def num_real(memory: ExplicitMemory) -> int:
    """Tokens that the fullest head of a memory holds (the text's length where every token is kept)."""
    return int((memory.index_LGN[0, 0] >= 0).sum())


def num_positions(row: Sequence[Group]) -> int:
    """Positions that a row's memories take one after the other."""
    return max((sum(num_real(memory) for memory in group.memories) for group in row), default=0)


def num_slots(group: Group) -> int:
    return sum(memory.index_LGN.shape[-1] for memory in group.memories)


def stacked_memories(rows: Sequence[Sequence[ExplicitMemory]]) -> tuple[Tensor, Tensor]:
    """key_BLGMD and value_BLGMD, rows filled up with zeros (which `visible_columns` hides)."""
    example = next(memory for row in rows for memory in row)
    shape = list(example.key_LGND.shape)
    shape[2] = 0

    def joined(name: str) -> Tensor:
        empty = getattr(example, name).new_zeros(shape)
        parts = [torch.cat([getattr(m, name) for m in row], dim=2) if row else empty for row in rows]
        return pad_sequence([part.permute(2, 0, 1, 3) for part in parts], batch_first=True).permute(0, 2, 3, 1, 4)

    return joined("key_LGND"), joined("value_LGND")


def visible_columns(
    groups: Sequence[Sequence[Group]],
    rows: Sequence[Sequence[ExplicitMemory]],
    lengths: Sequence[int],
    num_lead: int,
    device: torch.device,
) -> Tensor | None:
    """visible_BTM (bool), or None where every token may see every column.

    Empty slots (index -1) are the same for all heads and layers of a memory: they depend on its length only.
    """
    T = max(lengths)
    width = max((sum(m.index_LGN.shape[-1] for m in row) for row in rows), default=0)
    visible_BTM = torch.zeros(len(groups), T, num_lead + width, dtype=torch.bool)
    visible_BTM[:, :, :num_lead] = True
    for r, row in enumerate(groups):
        ends = [*[group.start for group in row[1:]], lengths[r]]
        column, pad, memory = num_lead, T - lengths[r], 0
        for group, end in zip(row, ends, strict=True):
            for _ in group.memories:
                filled = rows[r][memory].index_LGN[0, 0] >= 0
                visible_BTM[r, pad + group.start : pad + end, column : column + len(filled)] = filled.cpu()
                column, memory = column + len(filled), memory + 1
    return None if bool(visible_BTM.all()) else visible_BTM.to(device)


def shared_columns(rows: Sequence[Sequence[ExplicitMemory]], num_tokens: int, num_lead: int, reach: int) -> Tensor:
    """visible_BTM of rows whose memory number m belongs to the m-th of equal chunks of their tokens (Memory³ §3.6).

    A chunk sees its own memory and those of the `reach - 1` chunks before it, each of which stands there once.
    """
    owner_BM = pad_sequence(
        [torch.cat([torch.full((m.index_LGN.shape[-1],), i) for i, m in enumerate(row)]) for row in rows],
        batch_first=True,
        padding_value=-1,
    )
    filled_BM = pad_sequence([torch.cat([m.index_LGN[0, 0] >= 0 for m in row]).cpu() for row in rows], batch_first=True)
    chunk_T = torch.arange(num_tokens) // (num_tokens // len(rows[0]))
    behind_BTM = chunk_T[None, :, None] - owner_BM[:, None]
    seen_BTM = (behind_BTM >= 0) & (behind_BTM < reach) & filled_BM[:, None] & (owner_BM[:, None] >= 0)
    return torch.nn.functional.pad(seen_BTM, (num_lead, 0), value=True)
