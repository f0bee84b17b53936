"""What a shape costs to train and to give memory, in FLOPs: the paper's own arithmetic (Memory³ App. A)."""

from __future__ import annotations

from dataclasses import dataclass

from remanence.train.shapes import Shape


@dataclass(frozen=True)
class Reading:
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


def write_flops(shape: Shape, reading: Reading) -> float:
    """One reference becomes a memory: the memory layers, the MLPs between them, and the choice of tokens."""
    M, T, width = reading.num_layers(shape), reading.reference_tokens, shape.num_heads * shape.head_dim
    projections = M * (T * shape.projection_parameters + 2 * T * T / 2 * width)
    mlps = (M - 1) * T * 3 * shape.width * shape.mlp_width
    return 2 * (projections + mlps + M * T * T * width)


def read_flops(shape: Shape, reading: Reading) -> float:
    """One chunk attends to one memory."""
    width = shape.num_heads * shape.head_dim
    return 2 * reading.num_layers(shape) * 2 * reading.chunk_tokens * reading.kept_tokens * width


def text_flops(shape: Shape, reading: Reading) -> float:
    """The same reference as text in front of one chunk (retrieval-augmented generation), at the least."""
    T, width = reading.reference_tokens, shape.num_heads * shape.head_dim
    attention = 2 * T * (T / 2 + reading.chunk_tokens) * width
    projections = shape.num_layers * (T * shape.projection_parameters + attention)
    return 2 * (projections + (shape.num_layers - 1) * T * 3 * shape.width * shape.mlp_width)


def training_flops(
    shape: Shape, num_tokens: int, reading: Reading | None = None, *, stop_gradient: bool = False
) -> float:
    """One sequence forward and backward; with `reading`, its references written and read too.

    `stop_gradient`: no gradient goes through the writing. Without checkpointing: nothing is computed twice.
    """
    flops = 3 * forward_flops(shape, num_tokens)
    if reading is None:
        return flops
    chunks = num_tokens // reading.chunk_tokens
    written = chunks * write_flops(shape, reading)
    return flops + (1 if stop_gradient else 3) * written + 3 * chunks * reading.memories * read_flops(shape, reading)


def break_even(shape: Shape, reading: Reading, train_tokens: int = 2048) -> tuple[float, float]:
    """How often a text must be used so that explicit memory is cheaper than text, and than training on it.

    Compute alone: neither storage nor search is in it (Memory³ App. A).
    """
    write, read = write_flops(shape, reading), read_flops(shape, reading)
    share = reading.reference_tokens / train_tokens
    learned = share * 3 * forward_flops(shape, train_tokens)
    return write / (text_flops(shape, reading) - read), (learned - write) / read
