"""The shapes of models by name (ours, and those of the papers), and of the memory that a sequence reads."""

from __future__ import annotations

from dataclasses import dataclass

from remanence.errors import InputError, check_counts

ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class Shape:
    """A Llama architecture: gated MLP, RMSNorm, no bias. `head_width` None: `width` divided by `num_heads`.

    `qk_norm`: queries and keys of every head are normalised before RoPE (RMSNorm with a gain, as in Qwen3), which keeps
    the attention logits from growing (arXiv 2302.05442). InputError for sizes that do not fit each other.
    """

    vocab_size: int = 8192
    width: int = 256
    mlp_width: int = 512
    num_layers: int = 8
    num_heads: int = 8
    num_kv_heads: int = 8
    max_positions: int = 2048
    head_width: int | None = None
    tied: bool = True
    rope_theta: float = ROPE_THETA
    qk_norm: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "mlp_width", "num_layers", "num_heads", "num_kv_heads", "max_positions")
        check_counts(self, *sizes)
        if self.head_width is None and self.width % self.num_heads:
            raise InputError(
                f"a width of {self.width} cannot be divided into {self.num_heads} heads", "change one of the two"
            )
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} KV heads evenly",
                "change one of the two",
            )
        if self.head_dim % 2:
            raise InputError(f"heads of width {self.head_dim} cannot be rotated", "use an even width")

    @property
    def head_dim(self) -> int:
        return self.head_width or self.width // self.num_heads

    @property
    def projection_parameters(self) -> int:
        """Parameters of the query, key, value and output projections of one layer."""
        return 2 * self.width * self.head_dim * (self.num_heads + self.num_kv_heads)

    @property
    def layer_parameters(self) -> int:
        """Parameters of the matrices of one layer; without norms, as in the paper."""
        return self.projection_parameters + 3 * self.width * self.mlp_width

    @property
    def embedding_parameters(self) -> int:
        return (1 if self.tied else 2) * self.vocab_size * self.width

    @property
    def num_parameters(self) -> int:
        """All parameters, norms included."""
        norms = 2 * self.width + (2 * self.head_dim if self.qk_norm else 0)
        return self.num_layers * (self.layer_parameters + norms) + self.width + self.embedding_parameters


SHAPES = {
    "nano": Shape(),
    "0.9b": Shape(60_416, 2048, 2048, 40, 32, 8, 2304, tied=False),
    "2b": Shape(60_416, 3200, 3200, 44, 40, 8, 2304, tied=False),
    "llama-3.1-8b": Shape(128_256, 4096, 14_336, 32, 32, 8, 131_072, tied=False, rope_theta=500_000.0),
}
"""0.9b and 2b: the ablation and the model of Memory³ (§3.4, §5); that their embeddings are not tied is inferred."""


@dataclass(frozen=True)
class MemoryShape:
    """How much memory a sequence reads in training: one reference per chunk, also read by the chunks after it.

    `memories`: the most references that a chunk reads. `layers`: the number of memory layers; None: half of the
    model's. Other sizes are in tokens.
    """

    reference_tokens: int = 128
    kept_tokens: int = 8
    chunk_tokens: int = 64
    memories: int = 5
    layers: int | None = None

    def num_layers(self, shape: Shape) -> int:
        return shape.num_layers // 2 if self.layers is None else self.layers
