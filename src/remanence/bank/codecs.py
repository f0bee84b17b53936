"""Memories to bytes and back: "bf16", "fp32" (exact), "int8" (one scale per vector); never pickle."""

from __future__ import annotations

import json
import math

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from remanence.errors import BankCorrupted, InputError
from remanence.types import ExplicitMemory, Memory

CODECS = ("bf16", "fp32", "int8")
INT8_MAX = 127
DTYPES = {
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
}


def check_codec(codec: str) -> str:
    if codec in CODECS:
        return codec
    raise InputError(f"codec is {codec!r}", f"use one of {', '.join(CODECS)}")


def encode(memory: Memory, codec: str = "bf16") -> bytes:
    """Safetensors bytes. A value that the codec cannot hold (NaN, infinite) is an InputError.

    "bf16" and "fp32" are exact for tensors of this dtype; "int8" is off by at
    most 1/254 of the largest absolute value of the same vector (the last dimension).
    """
    check_codec(codec)
    tensors = {"layers": torch.tensor(memory.layers, dtype=torch.int32), "index": _small(memory.index_LGN)}
    for name, value in (("key", memory.key_LGND), ("value", memory.value_LGND)):
        value = value.detach().to("cpu")
        if not _is_finite(value):
            raise InputError(f"a memory's {name} holds NaN or infinite numbers", "check the model that wrote it")
        tensors |= _pack(name, value, codec)
    return _safetensors(tensors)


def _safetensors(tensors: dict[str, Tensor]) -> bytes:
    """The format of the safetensors library, whose own `save` takes ten times as long for tensors this small."""
    header: dict[str, object] = {}
    parts, end = [], 0
    for name, tensor in tensors.items():
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        parts.append(data)
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + len(data)],
        }
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _pack(name: str, value: Tensor, codec: str) -> dict[str, Tensor]:
    if codec == "int8":
        value = value.float()
        scale = value.abs().amax(-1, keepdim=True) / INT8_MAX
        quotient = value / torch.where(scale == 0, 1.0, scale)
        return {name: quotient.round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), f"{name}_scale": scale}
    packed = value.to(torch.bfloat16 if codec == "bf16" else torch.float32)
    if not _is_finite(packed):
        raise InputError(f"a memory's {name} is too large for codec {codec!r}", "use codec 'fp32'")
    return {name: packed}


def _is_finite(value: Tensor) -> bool:
    """One pass where all is well: a sum is finite only if every number is."""
    return bool(value.float().sum().isfinite()) or bool(torch.isfinite(value).all())


def decode(payload: bytes, codec: str) -> Memory:
    """The memory of `encode`; "int8" comes back as float32. BankCorrupted where the bytes are not one."""
    try:
        tensors = load(payload)
        key, value = (_unpack(tensors, name, codec) for name in ("key", "value"))
        layers = tuple(tensors["layers"].tolist())
        memory = ExplicitMemory(layers, key, value, tensors["index"].to(torch.int32))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise BankCorrupted(f"a memory's bytes are not a memory ({error})", "run `remanence bank verify`") from None
    if not (len(layers) == key.shape[0] and key.shape == value.shape and memory.index_LGN.shape == key.shape[:3]):
        raise BankCorrupted("a memory's tensors do not fit together", "run `remanence bank verify`")
    return memory


def _unpack(tensors: dict[str, Tensor], name: str, codec: str) -> Tensor:
    if codec == "int8":
        return tensors[name].float() * tensors[f"{name}_scale"]
    return tensors[name]


def _small(index: Tensor) -> Tensor:
    """Positions as int16 where they fit, which they do for references of 128 tokens."""
    index = index.detach().to("cpu", torch.int32)
    fits = index.numel() == 0 or int(index.max()) <= torch.iinfo(torch.int16).max
    return index.to(torch.int16) if fits else index


def largest_difference(one: Memory, other: Memory) -> float:
    """Largest absolute difference of keys and values, relative to the largest value; inf: another shape."""
    if one.layers != other.layers or one.key_LGND.shape != other.key_LGND.shape:
        return math.inf
    if not torch.equal(one.index_LGN, other.index_LGN.to(one.index_LGN.device)):
        return math.inf
    worst = 0.0
    for left, right in ((one.key_LGND, other.key_LGND), (one.value_LGND, other.value_LGND)):
        left, right = left.detach().float().cpu(), right.detach().float().cpu()
        if left.numel():
            worst = max(worst, float((left - right).abs().max() / right.abs().max().clamp_min(1e-30)))
    return worst
