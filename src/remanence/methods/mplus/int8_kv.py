"""Keys and values of a prefix as int8, one scale for each vector: about half of the bytes that bfloat16 takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.methods.mplus.blocks import rounded
from remanence.types import KV


@dataclass(frozen=True)
class SmallKV:
    """`kv` gives the rounded vectors back; a value differs by at most half of its vector's largest over 127, and by
    what the dtype itself rounds. No gradient flows.
    """

    key_BGMD: Tensor
    key_scale_BGM1: Tensor
    value_BGMD: Tensor
    value_scale_BGM1: Tensor
    visible_BTM: Tensor | None
    dtype: torch.dtype

    @staticmethod
    def of(kv: KV) -> SmallKV:
        key, value = rounded(kv.key_BGMD), rounded(kv.value_BGMD)
        return SmallKV(*key, *value, kv.visible_BTM, kv.key_BGMD.dtype)

    @property
    def kv(self) -> KV:
        key_BGMD = (self.key_BGMD * self.key_scale_BGM1).to(self.dtype)
        return KV(key_BGMD, (self.value_BGMD * self.value_scale_BGM1).to(self.dtype), self.visible_BTM)

    def row(self, i: int) -> SmallKV:
        """Of row `i` of the batch alone."""
        parts = (self.key_BGMD, self.key_scale_BGM1, self.value_BGMD, self.value_scale_BGM1, self.visible_BTM)
        return SmallKV(*(part if part is None or len(part) == 1 else part[i : i + 1] for part in parts), self.dtype)
