"""A reading of rows that are still being trained: with gradients, and with the scores that a loss is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from remanence.latent.retriever import log_odds
from remanence.lm.lm import LM
from remanence.lm.rows import norm_of, rows_to_kv
from remanence.methods.mplus import MPlus
from remanence.types import KV


@dataclass
class LivePrefix:
    """`[first vector; long-term rows; pool; own rows]` for questions, each of a document.

    `pool_LNC` is shared; `own_DLRC` (may be None) stands behind it, read by the questions of its document. Of
    `candidate_LMC` each question reads the `num_long` best, those that `forced_QM` marks first, in the order of
    `time_M`. `asked_QT` marks the tokens that ask; `of_Q` is each question's document.
    """

    lm: LM
    method: MPlus
    pool_LNC: Tensor
    own_DLRC: Tensor | None
    of_Q: Tensor
    asked_QT: Tensor
    candidate_LMC: Tensor
    time_M: Tensor
    num_long: int
    forced_QM: Tensor | None = None
    detached: bool = False
    refresh_tokens: int | None = None
    odds: dict[int, Tensor] = field(default_factory=dict)
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
        if self.candidate_LMC.shape[1]:
            self._rank(layer, hidden_BTC)
        if self.num_long:
            index_QK = self.chosen[layer]
            long_QKC = self.candidate_LMC[layer][index_QK]
            at_K = torch.arange(slots - index_QK.shape[1], slots) + 1
            parts.append(rows_to_kv(model, layer, long_QKC, at_K, "read"))
        end = 1 + slots + self.method.config.pool_rows  # rows stand right in front of the text, also where they are few
        at_N = torch.arange(end - self.num_pool_rows, end)
        num_old = self.pool_LNC.shape[1]
        if num_old:
            parts.append(rows_to_kv(model, layer, self.pool_LNC[layer][None], at_N[:num_old], "read"))
        if self.own_DLRC is not None:
            own = rows_to_kv(model, layer, self.own_DLRC[:, layer], at_N[num_old:], "read")
            parts.append(KV(own.key_BGMD[self.of_Q], own.value_BGMD[self.of_Q]))
        return KV(*(_cat([getattr(p, name) for p in parts], len(hidden_BTC)) for name in ("key_BGMD", "value_BGMD")))

    def _rank(self, layer: int, hidden_BTC: Tensor) -> None:
        modules = self.method.modules(self.lm)
        normed_MC = norm_of(self.lm.model, layer)(self.candidate_LMC[layer])
        asked_BTC = hidden_BTC
        if self.detached:
            normed_MC, asked_BTC = normed_MC.detach(), asked_BTC.detach()
        odds_QM = log_odds(modules.query[layer](asked_BTC), modules.key[layer](normed_MC), self.asked_QT)
        self.odds[layer] = odds_QM
        if self.num_long:
            ranked_QM = odds_QM.detach().float()
            if self.forced_QM is not None:
                ranked_QM = ranked_QM + 1e4 * self.forced_QM
            found_QK = ranked_QM.topk(min(self.num_long, ranked_QM.shape[1]), dim=1).indices
            self.chosen[layer] = found_QK.gather(1, self.time_M[found_QK].argsort(1))


def _cat(parts: list[Tensor], B: int) -> Tensor:
    dtype = parts[-1].dtype
    return torch.cat([part.to(dtype).expand(B, -1, -1, -1) for part in parts], dim=2)
