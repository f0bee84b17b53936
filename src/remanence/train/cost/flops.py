"""FLOPs of training and of memory for a model's shape (Memory³ App. A; those of a step with memory are inferred)."""

from __future__ import annotations

from collections.abc import Sequence

from remanence.train.core.shapes import MemoryShape, Shape

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""Peak FLOPs per second in bfloat16, without sparsity, by a part of the GPU's name (NVIDIA's data sheets)."""


def forward_flops(shape: Shape, num_tokens: int) -> float:
    """FLOPs of one forward pass over a sequence, with logits. On average a token attends to half of the sequence."""
    attention = 2 * num_tokens * num_tokens / 2 * shape.num_heads * shape.head_dim
    layers = shape.num_layers * (num_tokens * shape.layer_parameters + attention)
    return 2 * (layers + num_tokens * shape.vocab_size * shape.width)


def write_flops(shape: Shape, memory: MemoryShape) -> float:
    """FLOPs of writing one reference: the memory layers, the MLPs between them, and the selection of tokens."""
    M, T, width = memory.num_layers(shape), memory.reference_tokens, shape.num_heads * shape.head_dim
    projections = M * (T * shape.projection_parameters + 2 * T * T / 2 * width)
    mlps = (M - 1) * T * 3 * shape.width * shape.mlp_width
    return 2 * (projections + mlps + M * T * T * width)


def read_flops(shape: Shape, memory: MemoryShape) -> float:
    """FLOPs of one chunk that attends to one memory."""
    width = shape.num_heads * shape.head_dim
    return 2 * memory.num_layers(shape) * 2 * memory.chunk_tokens * memory.kept_tokens * width


def text_flops(shape: Shape, memory: MemoryShape) -> float:
    """FLOPs, at least, of the same reference as text in front of one chunk (retrieval-augmented generation)."""
    T, width = memory.reference_tokens, shape.num_heads * shape.head_dim
    attention = 2 * T * (T / 2 + memory.chunk_tokens) * width
    projections = shape.num_layers * (T * shape.projection_parameters + attention)
    return 2 * (projections + (shape.num_layers - 1) * T * 3 * shape.width * shape.mlp_width)


def training_flops(
    shape: Shape, num_tokens: int, memory: MemoryShape | None = None, *, stop_gradient: bool = False
) -> float:
    """FLOPs of one sequence, forward and backward, without checkpointing; with `memory`, also of its references.

    `stop_gradient`: no gradient reaches the writing.
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
    """FLOPs of a step over `rows` rows with `num_logits` logits, forward and backward, without checkpointing.

    `written`: the number of tokens of each reference, which becomes a memory of `kept_tokens` tokens (None: all) and is
    read by one row. Without `writes` no gradient reaches the writing.
    """
    unneeded = 2 * (rows * num_tokens - num_logits) * shape.vocab_size * shape.width
    flops = 3 * (rows * forward_flops(shape, num_tokens) - unneeded)
    for tokens in written:
        memory = MemoryShape(tokens, min(tokens, kept_tokens or tokens), num_tokens)
        flops += (3 if writes else 1) * write_flops(shape, memory) + 3 * read_flops(shape, memory)
    return flops


def peak_of(device: str) -> float | None:
    """Peak FLOPs per second of the GPU of this name; None if unknown."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device), None)


def break_even(shape: Shape, memory: MemoryShape, train_tokens: int = 2048) -> tuple[float, float]:
    """(uses of a text from which memory is cheaper than the text, uses up to which it is cheaper than training).

    Compute only, without storage and search (Memory³ App. A).
    """
    write, read = write_flops(shape, memory), read_flops(shape, memory)
    share = memory.reference_tokens / train_tokens
    learned = share * 3 * forward_flops(shape, train_tokens)
    return write / (text_flops(shape, memory) - read), (learned - write) / read
