"""Keys and values of a prefix as int8, one scale for each vector: half of the bytes that bfloat16 takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.types import KV


@dataclass(frozen=True)
class SmallKV:
    """`kv` gives the rounded vectors back; a value differs by at most half of its vector's largest over 127."""

    key_BGMD: Tensor
    key_scale_BGM1: Tensor
    value_BGMD: Tensor
    value_scale_BGM1: Tensor
    visible_BTM: Tensor | None

    @staticmethod
    def of(kv: KV) -> SmallKV:
        return SmallKV(*_coded(kv.key_BGMD), *_coded(kv.value_BGMD), kv.visible_BTM)

    @property
    def kv(self) -> KV:
        key_BGMD = self.key_BGMD * self.key_scale_BGM1
        return KV(key_BGMD, self.value_BGMD * self.value_scale_BGM1, self.visible_BTM)


def _coded(vector_BGMD: Tensor) -> tuple[Tensor, Tensor]:
    scale_BGM1 = vector_BGMD.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (vector_BGMD / scale_BGM1).round().to(torch.int8), scale_BGM1
