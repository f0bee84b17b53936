"""Append-only blocks of rows and search keys that many pools share: a snapshot of a pool copies none of them."""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from mmap import mmap
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from remanence.errors import InputError

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
BLOCK_ROWS = 4096
MADV_DONTNEED = 4
"""Of Linux, where it drops no data of a shared mapping; elsewhere the system keeps pages until it needs the room."""


@dataclass(frozen=True)
class Place:
    """Where rows and search keys are stored, and in which precision: memory-mapped files in `folder`, or RAM (None).

    int8 has one float32 scale for each row, its largest value over 127.
    """

    precision: Precision = "bfloat16"
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"rows cannot be stored as {self.precision!r}", f"use one of {', '.join(PRECISIONS)}")

    def bytes_per_row(self, width: int) -> int:
        """Bytes of a vector of `width` values."""
        return width * PRECISIONS[self.precision].itemsize + (4 if self.precision == "int8" else 0)


@dataclass
class Coded:
    """Vectors of the shape (L, R, width) in the precision of a place; `scale_LR` (float32) for int8 alone."""

    code_LRC: Tensor
    scale_LR: Tensor | None
    file: mmap | None = None

    @staticmethod
    def room(num_layers: int, num_rows: int, width: int, place: Place) -> Coded:
        """Uninitialised vectors."""
        shape, dtype = (num_layers, num_rows, width), PRECISIONS[place.precision]
        scale = torch.empty(shape[:2]) if place.precision == "int8" else None
        if place.folder is not None:
            file = _mapped(math.prod(shape) * dtype.itemsize, place.folder)
            return Coded(torch.frombuffer(file, dtype=dtype).view(shape), scale, file)
        return Coded(torch.empty(shape, dtype=dtype), scale)

    def release(self) -> None:
        """Removes the file's pages from this process's RAM; the file holds their content."""
        if self.file is not None and sys.platform == "linux":
            self.file.madvise(MADV_DONTNEED)

    def put(self, at: int, row_LNC: Tensor) -> None:
        """Writes N vectors per layer from place `at` on."""
        end = at + row_LNC.shape[1]
        if self.scale_LR is not None:
            row_LNC, scale_LN1 = rounded(row_LNC)
            self.scale_LR[:, at:end] = scale_LN1[..., 0]
        self.code_LRC[:, at:end] = row_LNC.to(self.code_LRC)

    def get(self, layer: int, index_N: Tensor | slice) -> Tensor:
        """row_NC of one layer, as float32 for int8, else in the stored precision."""
        code_NC = self.code_LRC[layer, index_N]
        return code_NC if self.scale_LR is None else code_NC.float() * self.scale_LR[layer, index_N, None]


def rounded(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of vectors (the last dimension), and the scale of each (float32, 1 in the last dimension)."""
    scale = vectors.detach().float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (vectors.detach().float() / scale).round().clamp(-127, 127).to(torch.int8), scale


def _mapped(num_bytes: int, folder: Path) -> mmap:
    """Room in a new file that has no name any more: nothing is left on disk when the room is freed."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"rows-{secrets.token_hex(8)}.bin"  # other pools may use the folder too
    with file.open("w+b") as opened:
        opened.truncate(num_bytes)
        room = mmap(opened.fileno(), num_bytes)
    file.unlink()
    return room


@dataclass
class Block:
    """Room for rows, their search keys and the clocks when they were written. The first `filled` rows never change."""

    row: Coded
    key: Coded
    born_LR: Tensor
    filled: int = 0

    @property
    def room(self) -> int:
        return self.born_LR.shape[1]


@dataclass(frozen=True)
class Blocks:
    """Rows in the order in which they were appended. A value: `append` makes a new one.

    `counts[i]` rows of `blocks[i]` belong to this value. `append` writes into the last block in place where this value
    owns all its filled rows; else it copies that one block.
    """

    place: Place
    num_layers: int
    width: int
    key_width: int
    block_rows: int = BLOCK_ROWS
    blocks: tuple[Block, ...] = ()
    counts: tuple[int, ...] = field(default=())

    @property
    def bytes_of_row(self) -> int:
        """Bytes of one row in every layer, with its search keys and clocks."""
        per_layer = self.place.bytes_per_row(self.width) + self.place.bytes_per_row(self.key_width) + 8
        return self.num_layers * per_layer

    @property
    def num_rows(self) -> int:
        """Rows per layer."""
        return sum(self.counts)

    def append(self, row_LNC: Tensor, key_LNE: Tensor, born_LN: Tensor) -> Blocks:
        """With N more rows per layer, their search keys, and the clocks (int64) when they were written."""
        blocks, counts, at = list(self.blocks), list(self.counts), 0
        if blocks and counts[-1] < blocks[-1].filled:
            blocks[-1] = self._copy(blocks[-1], counts[-1])
        while at < row_LNC.shape[1]:
            if not blocks or blocks[-1].filled == blocks[-1].room:
                blocks.append(self._fresh())
                counts.append(0)
            last = blocks[-1]
            take = min(last.room - last.filled, row_LNC.shape[1] - at)
            part = slice(at, at + take)
            last.row.put(last.filled, row_LNC[:, part])
            last.key.put(last.filled, key_LNE[:, part])
            last.born_LR[:, last.filled : last.filled + take] = born_LN[:, part].to(last.born_LR)
            last.filled += take
            counts[-1], at = last.filled, at + take
            if last.filled == last.room:
                last.row.release()
                last.key.release()
        return self._with(blocks, counts)

    def without_first(self, num_blocks: int) -> Blocks:
        """Without the oldest blocks."""
        return self._with(self.blocks[num_blocks:], self.counts[num_blocks:])

    def born_LM(self) -> Tensor:
        """born_LM (int64): the clock when each row was written."""
        parts = [b.born_LR[:, :n] for b, n in self._pairs()]
        return torch.cat(parts, dim=1) if parts else torch.empty(self.num_layers, 0, dtype=torch.long)

    def born(self, layer: int) -> Tensor:
        """born_M (int64) of one layer."""
        parts = [b.born_LR[layer, :n] for b, n in self._pairs()]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)

    def keys(self, layer: int) -> Iterator[Tensor]:
        """key_NE of one layer, one tensor for each block."""
        for block, count in self._pairs():
            yield block.key.get(layer, slice(0, count))
            block.key.release()

    def rows(self, layer: int, index_N: Tensor) -> Tensor:
        """row_NC of one layer at the places `index_N`, counted over all blocks."""
        out_NC: Tensor | None = None
        start = 0
        for block, count in self._pairs():
            here_N = ((index_N >= start) & (index_N < start + count)).nonzero().squeeze(1)
            if len(here_N):
                row_NC = block.row.get(layer, index_N[here_N] - start)
                block.row.release()
                if out_NC is None:
                    out_NC = row_NC.new_empty(len(index_N), row_NC.shape[-1])
                out_NC[here_N] = row_NC
            start += count
        return torch.empty(0, self.width) if out_NC is None else out_NC

    def parts(self) -> dict[str, Tensor]:
        """Everything by name: codes as they are stored, scales for int8, clocks. See `with_parts`."""
        parts = {"long.born": self.born_LM()}
        for name in ("row", "key"):
            coded: list[tuple[Coded, int]] = [(getattr(block, name), count) for block, count in self._pairs()]
            if coded:
                parts[f"long.{name}"] = torch.cat([part.code_LRC[:, :n] for part, n in coded], dim=1)
            scales = [part.scale_LR[:, :n] for part, n in coded if part.scale_LR is not None]
            if scales:
                parts[f"long.{name}_scale"] = torch.cat(scales, dim=1)
        return parts

    def with_parts(self, parts: Mapping[str, Tensor]) -> Blocks:
        """These empty blocks filled with what `parts` returned, bit for bit."""
        at, total, blocks, counts = 0, parts["long.born"].shape[1], [], []
        while at < total:
            block, part = self._fresh(), slice(at, min(at + self.block_rows, total))
            count = part.stop - at
            for name in ("row", "key"):
                coded: Coded = getattr(block, name)
                coded.code_LRC[:, :count] = parts[f"long.{name}"][:, part]
                if coded.scale_LR is not None:
                    coded.scale_LR[:, :count] = parts[f"long.{name}_scale"][:, part]
            block.born_LR[:, :count] = parts["long.born"][:, part]
            block.filled, at = count, part.stop
            blocks.append(block)
            counts.append(count)
        return self._with(blocks, counts)

    def _pairs(self) -> Iterator[tuple[Block, int]]:
        return zip(self.blocks, self.counts, strict=True)

    def _fresh(self) -> Block:
        row = Coded.room(self.num_layers, self.block_rows, self.width, self.place)
        key = Coded.room(self.num_layers, self.block_rows, self.key_width, self.place)
        return Block(row, key, torch.zeros(self.num_layers, self.block_rows, dtype=torch.long))

    def _copy(self, block: Block, count: int) -> Block:
        fresh = self._fresh()
        for name in ("row", "key"):
            old: Coded = getattr(block, name)
            new: Coded = getattr(fresh, name)
            new.code_LRC[:, :count] = old.code_LRC[:, :count]
            if old.scale_LR is not None and new.scale_LR is not None:
                new.scale_LR[:, :count] = old.scale_LR[:, :count]
        fresh.born_LR[:, :count] = block.born_LR[:, :count]
        fresh.filled = count
        return fresh

    def _with(self, blocks: list[Block] | tuple[Block, ...], counts: list[int] | tuple[int, ...]) -> Blocks:
        return replace(self, blocks=tuple(blocks), counts=tuple(counts))
