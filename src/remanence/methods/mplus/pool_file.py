"""A pool in one file: safetensors with a fingerprint of model and method and a checksum, read back whole or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from remanence.errors import BankMismatch, InputError
from remanence.methods.mplus.blocks import Blocks
from remanence.methods.mplus.history import PoolHistory, Write
from remanence.methods.mplus.pool import Pool
from remanence.tensor_file import read_tensors, write_tensors

FORMAT = "remanence pool 1"
_OPTIONAL = ("decays_L", "dies_LM", "kept_LM")


def save_pool(pool: Pool, file: Path, fingerprint: str) -> None:
    """Writes `file` in one step: what was there stays whole until all of the new one is on disk.

    `fingerprint`: what the rows are valid for (`Method.fingerprint`).
    """
    _save(pool, file, fingerprint, [])


def _save(pool: Pool, file: Path, fingerprint: str, writes: list[Any]) -> None:
    tensors, numbers = parts_of(pool)
    told = json.dumps({**numbers, "writes": writes})
    write_tensors(file, tensors, {"format": FORMAT, "fingerprint": fingerprint, "numbers": told})


def save_history(kept: PoolHistory, file: Path, fingerprint: str) -> None:
    """As `save_pool`, with the writes that made the pool; pools of earlier moments are not kept."""
    _save(kept.pool, file, fingerprint, [[list(write.ids), write.begin, write.end] for write in kept.writes])


def load_history(file: Path, like: PoolHistory, fingerprint: str) -> PoolHistory:
    """As `load_pool`; of earlier moments only `like`, the first one, can be gone back to."""
    pool, writes = _load(file, like.pool, fingerprint)
    return PoolHistory(pool, tuple(Write(tuple(ids), begin, end) for ids, begin, end in writes), ((0, like.pool),))


def load_pool(file: Path, like: Pool, fingerprint: str) -> Pool:
    """The pool in `file`, its long-term memory where that of `like` (a fresh pool of the same method) is.

    Raises InputError where there is no such file, BankCorrupted for one that is cut or changed, and BankMismatch for
    one of another model, method or shape.
    """
    return _load(file, like, fingerprint)[0]


def _load(file: Path, like: Pool, fingerprint: str) -> tuple[Pool, list[Any]]:
    if not file.is_file():
        raise InputError(f"there is no pool at {str(file)!r}", "name a file that `save` has written")
    told, tensors = read_tensors(file)
    if told.get("format") != FORMAT:
        raise BankMismatch(
            f"{str(file)!r} is no pool of this version ({told.get('format')!r})", f"this one reads {FORMAT!r}"
        )
    if told["fingerprint"] != fingerprint:
        raise BankMismatch(
            f"{str(file)!r} is of another model or method ({told['fingerprint'][:8]}, not {fingerprint[:8]})",
            "use the model and the settings that it was written with, or write its texts again",
        )
    if tensors["row_LNC"].shape != like.row_LNC.shape:
        shapes = f"{tuple(tensors['row_LNC'].shape)}, not {tuple(like.row_LNC.shape)}"
        raise BankMismatch(
            f"the pool in {str(file)!r} has the shape {shapes}", "use the method's settings it was made with"
        )
    numbers = json.loads(told["numbers"])
    return pool_of(tensors, numbers, like), numbers["writes"]


def parts_of(pool: Pool) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Everything that the pool's next write depends on: tensors, and numbers that JSON can hold."""
    long, parts = pool.long, pool.long.blocks.parts()
    found = {"row_LNC": pool.row_LNC, "born_LN": pool.born_LN, "random": pool.random, "oldest_L": long.oldest_L}
    optional = {name: getattr(long, name) for name in _OPTIONAL}
    tensors = found | parts | {name: tensor for name, tensor in optional.items() if tensor is not None}
    return tensors, {"clock": pool.clock, "num_merged": long.num_merged}


def pool_of(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], like: Pool) -> Pool:
    """The pool that `parts_of` took apart; its long-term memory lies where that of `like` does."""
    blocks: Blocks = replace(like.long.blocks, blocks=(), counts=()).with_parts(tensors)
    optional = {name: tensors.get(name) for name in _OPTIONAL}
    long = replace(like.long, blocks=blocks, oldest_L=tensors["oldest_L"], num_merged=numbers["num_merged"], **optional)
    row_LNC = tensors["row_LNC"].to(like.row_LNC)
    return Pool(row_LNC, tensors["born_LN"], numbers["clock"], long, tensors["random"])
