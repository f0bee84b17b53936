"""Tensors in one file with a description of them and a checksum: read back whole and as written, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from remanence.errors import BankCorrupted, BankMismatch
from remanence.files import write_whole


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Safetensors, in one step: what was there stays whole until all of the new file is on disk."""
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(file, save(on_cpu, {**metadata, "checksum": _checksum(on_cpu, metadata)}))


def read_tensors(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors.

    Raises BankCorrupted for a file that is cut or changed, BankMismatch for one that was not written here.
    """
    try:
        with safe_open(file, "pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise BankCorrupted(f"{str(file)!r} cannot be read: {reason}", "restore it from a copy") from error
    if "checksum" not in metadata:
        raise BankMismatch(f"{str(file)!r} has no checksum", "give a file that remanence has written")
    if metadata.pop("checksum") != _checksum(tensors, metadata):
        raise BankCorrupted(
            f"{str(file)!r} is not what was written", "restore it from a copy, or write its texts again"
        )
    return metadata, tensors


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 (hex) over what the file says and holds, in the order of names."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
