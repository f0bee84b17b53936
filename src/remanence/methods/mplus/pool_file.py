"""A pool in one file: safetensors with a fingerprint and a checksum, read back whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from remanence.errors import BankMismatch, InputError
from remanence.methods.mplus.blocks import Blocks
from remanence.methods.mplus.pool import Pool, PoolHistory, Write
from remanence.tensor_file import read_tensors, write_tensors

FORMAT = "remanence pool 1"
_OPTIONAL = ("decays_L", "dies_LM", "kept_LM")


def save_history(history: PoolHistory, file: Path, fingerprint: str) -> None:
    """Writes the pool and its writes in one step: `file` holds all of the old bytes or all of the new ones.

    `fingerprint`: what the pool is valid for. The pools after earlier writes are not stored.
    """
    tensors, numbers = parts_of(history.pool)
    writes = [[list(write.ids), write.begin, write.end] for write in history.writes]
    metadata = {"format": FORMAT, "fingerprint": fingerprint, "numbers": json.dumps({**numbers, "writes": writes})}
    write_tensors(file, tensors, metadata)


def load_history(file: Path, like: PoolHistory, fingerprint: str) -> PoolHistory:
    """The pool in `file` and its writes; only `like`, the history before the first write, can be gone back to.

    Its long-term memory is stored where that of `like` is. Raises InputError where there is no such file,
    BankCorrupted for a file that is cut or changed, BankMismatch for one of another model, method or shape.
    """
    if not file.is_file():
        raise InputError(f"there is no pool at {str(file)!r}", "name a file that `Session.save` has written")
    metadata, tensors = read_tensors(file)
    if metadata.get("format") != FORMAT:
        raise BankMismatch(
            f"{str(file)!r} is no pool of this version ({metadata.get('format')!r})", f"this one reads {FORMAT!r}"
        )
    if metadata["fingerprint"] != fingerprint:
        raise BankMismatch(
            f"{str(file)!r} is of another model or method ({metadata['fingerprint'][:8]}, not {fingerprint[:8]})",
            "use the model and the settings that it was written with, or write its texts again",
        )
    if tensors["row_LNC"].shape != like.pool.row_LNC.shape:
        shapes = f"{tuple(tensors['row_LNC'].shape)}, not {tuple(like.pool.row_LNC.shape)}"
        raise BankMismatch(
            f"the pool in {str(file)!r} has the shape {shapes}", "use the method's settings it was made with"
        )
    numbers = json.loads(metadata["numbers"])
    writes = tuple(Write(tuple(ids), begin, end) for ids, begin, end in numbers["writes"])
    return PoolHistory(pool_of(tensors, numbers, like.pool), writes, ((0, like.pool),))


def parts_of(pool: Pool) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Everything that the pool's next write depends on: tensors, and integers that JSON can hold."""
    long = pool.long
    tensors = {"row_LNC": pool.row_LNC, "born_LN": pool.born_LN, "random": pool.random, "oldest_L": long.oldest_L}
    optional = {name: getattr(long, name) for name in _OPTIONAL}
    tensors |= long.blocks.parts() | {name: tensor for name, tensor in optional.items() if tensor is not None}
    return tensors, {"clock": pool.clock, "num_merged": long.num_merged}


def pool_of(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], like: Pool) -> Pool:
    """The pool that `parts_of` took apart. Its tensors have the device and dtype of those of `like`."""
    blocks: Blocks = replace(like.long.blocks, blocks=(), counts=()).with_parts(tensors)
    optional = {name: tensors.get(name) for name in _OPTIONAL}
    long = replace(like.long, blocks=blocks, oldest_L=tensors["oldest_L"], num_merged=numbers["num_merged"], **optional)
    row_LNC = tensors["row_LNC"].to(like.row_LNC)
    return Pool(row_LNC, tensors["born_LN"], numbers["clock"], long, tensors["random"])
