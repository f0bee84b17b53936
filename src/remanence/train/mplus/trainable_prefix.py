"""A prefix of pool rows that are being trained: it has gradients, and keeps the retriever's scores for its loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from remanence.lm.hidden_states import norm_of, rows_to_kv
from remanence.lm.lm import LM
from remanence.methods.mplus.method import MPlus
from remanence.methods.mplus.retriever import write_scores
from remanence.types import KV


@dataclass(frozen=True)
class Writes:
    """Rows of G writes of K rows. `seen_LGK` (bool) marks the rows that exist: of a short chunk the last ones only."""

    row_LGKC: Tensor
    seen_LGK: Tensor


@dataclass
class TrainablePrefix:
    """`[first vector; long-term rows; pool; own rows]` for Q questions.

    - `pool_LNC` is read by all questions.
    - `own_DLRC` (or None): rows of each document, behind the pool; read by the questions of the document (`of_Q`) where
      `own_seen_DR` is true.
    - `writes` (or None): each question reads their `num_long` best rows by the retriever's score, in their order.
      `forced_QG` marks writes that come first.
    - `asked_QT` (bool): the tokens that query the retriever.
    - `detached`: the retriever's loss trains its projectors alone.

    A call fills `score` (score_QG) and `chosen` (indices into the rows of all writes) of its layer.
    """

    lm: LM
    method: MPlus
    pool_LNC: Tensor
    own_DLRC: Tensor | None
    own_seen_DR: Tensor | None
    of_Q: Tensor
    asked_QT: Tensor
    writes: Writes | None = None
    num_long: int = 0
    forced_QG: Tensor | None = None
    detached: bool = False
    refresh_tokens: int | None = None
    score: dict[int, Tensor] = field(default_factory=dict)
    chosen: dict[int, Tensor] = field(default_factory=dict)

    @property
    def offset_tokens(self) -> int:
        return 1 + self.method.config.long_slots + self.method.config.pool_rows

    @property
    def num_pool_rows(self) -> int:
        return self.pool_LNC.shape[1] + (0 if self.own_DLRC is None else self.own_DLRC.shape[2])

    def __call__(self, layer: int, hidden_BTC: Tensor) -> KV:
        modules, model, slots = self.method.modules(self.lm), self.lm.model, self.method.config.long_slots
        bos_BMC = modules.bos_LC[layer].expand(1, 1, -1)
        parts = [rows_to_kv(model, layer, bos_BMC, torch.zeros(1, dtype=torch.long), "read")]
        if self.writes is not None:
            long_QKC = self._retrieve(layer, hidden_BTC, self.writes)
            if self.num_long:
                at_K = torch.arange(slots - long_QKC.shape[1], slots) + 1
                parts.append(rows_to_kv(model, layer, long_QKC, at_K, "read"))
        end = 1 + slots + self.method.config.pool_rows  # rows stand right in front of the text, however few there are
        at_N = torch.arange(end - self.num_pool_rows, end)
        num_old = self.pool_LNC.shape[1]
        if num_old:
            parts.append(rows_to_kv(model, layer, self.pool_LNC[layer][None], at_N[:num_old], "read"))
        if self.own_DLRC is not None:
            own = rows_to_kv(model, layer, self.own_DLRC[:, layer], at_N[num_old:], "read")
            parts.append(KV(own.key_BGMD[self.of_Q], own.value_BGMD[self.of_Q]))
        key, value = (_cat([getattr(p, name) for p in parts], len(hidden_BTC)) for name in ("key_BGMD", "value_BGMD"))
        return KV(key, value, self._visible(key.shape[2]))

    def _visible(self, num_rows: int) -> Tensor | None:
        if self.own_seen_DR is None or self.own_seen_DR.all():
            return None
        seen_Q1R = self.own_seen_DR[self.of_Q][:, None]
        return torch.cat([seen_Q1R.new_ones(len(seen_Q1R), 1, num_rows - seen_Q1R.shape[2]), seen_Q1R], dim=2)

    def _retrieve(self, layer: int, hidden_BTC: Tensor, writes: Writes) -> Tensor:
        """row_QKC: the rows of the best writes by score. Of the last write that fits, the first rows."""
        modules, seen_GK = self.method.modules(self.lm), writes.seen_LGK[layer]
        row_GKC, num_asked = writes.row_LGKC[layer], int(self.asked_QT.sum(1).max())
        normed_GKC, query_BTC = norm_of(self.lm.model, layer)(row_GKC), hidden_BTC[:, :num_asked]
        if self.detached:
            normed_GKC, query_BTC = normed_GKC.detach(), query_BTC.detach()
        query_QTE, key_GKE = modules.query[layer](query_BTC), modules.key[layer](normed_GKC)
        score_QG = write_scores(query_QTE, key_GKE, seen_GK, self.asked_QT[:, :num_asked])
        self.score[layer] = score_QG
        rank_QG = score_QG.detach() if self.forced_QG is None else score_QG.detach() + 10.0 * self.forced_QG
        rank_QGK = rank_QG[..., None].masked_fill(~seen_GK, -1.0)
        rank_QM = rank_QGK.flatten(1).double() - 1e-12 * torch.arange(seen_GK.numel())
        self.chosen[layer] = rank_QM.topk(min(self.num_long, int(seen_GK.sum())), dim=1).indices.sort(1).values
        return row_GKC.flatten(0, 1)[self.chosen[layer]]


def _cat(parts: list[Tensor], B: int) -> Tensor:
    dtype = parts[-1].dtype
    return torch.cat([part.to(dtype).expand(B, -1, -1, -1) for part in parts], dim=2)
