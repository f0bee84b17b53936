"""Keys and values as int8 with one scale for each vector: about half of the bytes of bfloat16."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.methods.mplus.blocks import rounded
from remanence.types import KV


@dataclass(frozen=True)
class Int8KV:
    """Int8 codes and one float32 scale for each key and each value; `kv` decodes them. No gradient flows.

    A decoded value differs by at most half of its vector's largest over 127, plus the rounding of `dtype`.
    """

    key_BGMD: Tensor
    key_scale_BGM1: Tensor
    value_BGMD: Tensor
    value_scale_BGM1: Tensor
    visible_BTM: Tensor | None
    dtype: torch.dtype

    @staticmethod
    def of(kv: KV) -> Int8KV:
        """Rounds `kv`."""
        key, value = rounded(kv.key_BGMD), rounded(kv.value_BGMD)
        return Int8KV(*key, *value, kv.visible_BTM, kv.key_BGMD.dtype)

    @property
    def kv(self) -> KV:
        """Keys and values in `dtype`."""
        key_BGMD = (self.key_BGMD * self.key_scale_BGM1).to(self.dtype)
        return KV(key_BGMD, (self.value_BGMD * self.value_scale_BGM1).to(self.dtype), self.visible_BTM)

    def of_prompt(self, b: int) -> Int8KV:
        """Of prompt `b` of the batch alone."""

        def of(part: Tensor) -> Tensor:
            return part if len(part) == 1 else part[b : b + 1]

        visible_BTM = None if self.visible_BTM is None else of(self.visible_BTM)
        return Int8KV(
            of(self.key_BGMD),
            of(self.key_scale_BGM1),
            of(self.value_BGMD),
            of(self.value_scale_BGM1),
            visible_BTM,
            self.dtype,
        )
