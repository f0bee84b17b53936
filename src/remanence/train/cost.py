"""What a shape costs to train and to give memory, in FLOPs (Memory³ App. A; a step with memory is inferred)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remanence.train.shapes import Shape

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""A second, bfloat16 without sparsity, by a part of the GPU's name (NVIDIA's data sheets)."""


@dataclass(frozen=True)
class MemoryShape:
    """How memory is read while a sequence is trained on: a reference for every chunk, shared with those after it.

    `layers` None: half of the model's.
    """

    reference_tokens: int = 128
    kept_tokens: int = 8
    chunk_tokens: int = 64
    memories: int = 5
    layers: int | None = None

    def num_layers(self, shape: Shape) -> int:
        return shape.num_layers // 2 if self.layers is None else self.layers


def forward_flops(shape: Shape, num_tokens: int) -> float:
    """One pass over a sequence with logits; a token attends to half of the sequence on average."""
    attention = 2 * num_tokens * num_tokens / 2 * shape.num_heads * shape.head_dim
    layers = shape.num_layers * (num_tokens * shape.layer_parameters + attention)
    return 2 * (layers + num_tokens * shape.vocab_size * shape.width)


def write_flops(shape: Shape, memory: MemoryShape) -> float:
    """One reference becomes a memory: the memory layers, the MLPs between them, and the choice of tokens."""
    M, T, width = memory.num_layers(shape), memory.reference_tokens, shape.num_heads * shape.head_dim
    projections = M * (T * shape.projection_parameters + 2 * T * T / 2 * width)
    mlps = (M - 1) * T * 3 * shape.width * shape.mlp_width
    return 2 * (projections + mlps + M * T * T * width)


def read_flops(shape: Shape, memory: MemoryShape) -> float:
    """One chunk attends to one memory."""
    width = shape.num_heads * shape.head_dim
    return 2 * memory.num_layers(shape) * 2 * memory.chunk_tokens * memory.kept_tokens * width


def text_flops(shape: Shape, memory: MemoryShape) -> float:
    """The same reference as text in front of one chunk (retrieval-augmented generation), at the least."""
    T, width = memory.reference_tokens, shape.num_heads * shape.head_dim
    attention = 2 * T * (T / 2 + memory.chunk_tokens) * width
    projections = shape.num_layers * (T * shape.projection_parameters + attention)
    return 2 * (projections + (shape.num_layers - 1) * T * 3 * shape.width * shape.mlp_width)


def training_flops(
    shape: Shape, num_tokens: int, memory: MemoryShape | None = None, *, stop_gradient: bool = False
) -> float:
    """One sequence forward and backward; with `memory`, its references written and read too.

    `stop_gradient`: no gradient goes through the writing. Without checkpointing: nothing is computed twice.
    """
    flops = 3 * forward_flops(shape, num_tokens)
    if memory is None:
        return flops
    chunks = num_tokens // memory.chunk_tokens
    written = chunks * write_flops(shape, memory)
    read = sum(min(chunk + 1, memory.memories) for chunk in range(chunks)) * read_flops(shape, memory)
    return flops + (1 if stop_gradient else 3) * written + 3 * read


def step_flops(
    shape: Shape,
    rows: int,
    num_tokens: int,
    num_logits: int,
    written: Sequence[int] = (),
    kept_tokens: int | None = None,
    *,
    writes: bool = True,
) -> float:
    """A step over `rows` with logits at `num_logits` places, forward and backward, nothing computed twice.

    `written`: the tokens of every reference, each of which becomes a memory of `kept_tokens` (None: all) and is read by
    one row. Without `writes` no gradient goes through the writing.
    """
    unneeded = 2 * (rows * num_tokens - num_logits) * shape.vocab_size * shape.width
    flops = 3 * (rows * forward_flops(shape, num_tokens) - unneeded)
    for tokens in written:
        memory = MemoryShape(tokens, min(tokens, kept_tokens or tokens), num_tokens)
        flops += (3 if writes else 1) * write_flops(shape, memory) + 3 * read_flops(shape, memory)
    return flops


def peak_of(device: str) -> float | None:
    """FLOPs a second that the GPU of this name is sold with; None where that is not known."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device), None)


def break_even(shape: Shape, memory: MemoryShape, train_tokens: int = 2048) -> tuple[float, float]:
    """How often a text must be used so that explicit memory is cheaper than text, and than training on it.

    Compute alone: neither storage nor search is in it (Memory³ App. A).
    """
    write, read = write_flops(shape, memory), read_flops(shape, memory)
    share = memory.reference_tokens / train_tokens
    learned = share * 3 * forward_flops(shape, train_tokens)
    return write / (text_flops(shape, memory) - read), (learned - write) / read
