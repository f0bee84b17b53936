"""The paper's step on running text: each chunk of a sequence reads its own reference and those before it (§3.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from remanence.errors import InputError
from remanence.lm.lm import LM
from remanence.methods.memory3.method import Memory3
from remanence.train.parallel import average


@dataclass(frozen=True)
class Sequences:
    """Full rows of tokens, and one reference for each of their equal chunks (`references[row][chunk]`); none: plain."""

    ids_BT: Tensor
    references: list[list[list[int]]]

    def to(self, device: torch.device) -> Sequences:
        return Sequences(self.ids_BT.to(device), self.references)


def sequence_loss(lm: LM, batch: Sequences, method: Memory3 | None = None, *, writes: bool = True) -> Tensor:
    """Nats per token of the text after the first; nothing is predicted in references, whose features are dropped.

    With `method` the references are written in one pass up to the last memory layer, and read. `writes` False: no
    gradient reaches the writing (the paper does not say; its time per step says that it did).
    """
    prefix, T = None, batch.ids_BT.shape[1]
    positions_T = torch.arange(T, device=lm.device)
    if method is not None:
        prefix = _read(lm, batch, method, writes)
        positions_T = positions_T + prefix.offset_tokens
    body: Any = lm.model.model
    hidden_BTC = body(batch.ids_BT, position_ids=positions_T[None], use_cache=False, memory=prefix).last_hidden_state
    logits_BTV = lm.model.lm_head(hidden_BTC[:, :-1])
    return average(
        functional.cross_entropy(logits_BTV.flatten(0, 1).float(), batch.ids_BT[:, 1:].flatten(), reduction="none")
    )


def _read(lm: LM, batch: Sequences, method: Memory3, writes: bool) -> Any:
    T, size = batch.ids_BT.shape[1], method.config.chunk_tokens
    odd = [len(row) for row in batch.references if len(row) * size != T]
    if odd or not batch.references:
        raise InputError(
            f"a row of {T} tokens has {odd[0] if odd else 0} references",
            f"give one for each of its chunks of {size} tokens",
        )
    with torch.set_grad_enabled(writes and torch.is_grad_enabled()):
        every = iter(method.write(lm, [ids for row in batch.references for ids in row]))
    rows = [[next(every) for _ in row] for row in batch.references]
    return method.shared_prefix(lm, rows, batch.ids_BT.shape[1])
