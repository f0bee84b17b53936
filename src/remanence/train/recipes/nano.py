"""The recipes of nano: sizes, mixture, curriculum of the warm-up, and of the training with memory."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """A Llama architecture with tied embeddings."""

    vocab_size: int = 4096
    width: int = 192
    mlp_width: int = 384
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 4
    max_positions: int = 2048


@dataclass(frozen=True)
class Phase:
    """A stretch of training with rows of one fixed length.

    `num_steps` is its length; `tokens` the row length; `facts` the most facts of one passage; `filler` and `alike`
    are those of the generator. The shares of
    a row's kind (`drill`: random tokens to copy; `books`, `squad`, `babi`) leave the rest to the generator.
    With memory, `slots` is the number of tokens kept per KV head (None keeps all), and `plain_tokens` the
    length of the rows that still have their passages as text.
    """

    num_steps: int
    rows: int
    tokens: int
    passages: tuple[int, int]
    facts: int
    filler: float = 0.25
    alike: float = 0.6
    drill: float = 0.0
    books: float = 0.0
    squad: float = 0.0
    babi: float = 0.0
    slots: int | None = None
    plain_tokens: int = 0


WARMUP = (
    Phase(250, 24, 112, (1, 1), 2, drill=0.15),
    Phase(350, 24, 112, (1, 1), 3, drill=0.08),
    Phase(400, 18, 160, (1, 2), 3, drill=0.05, squad=0.03),
    Phase(500, 14, 224, (2, 3), 4, drill=0.04, books=0.03, squad=0.06, babi=0.02),
    Phase(512, 9, 384, (2, 5), 4, drill=0.02, books=0.03, squad=0.08, babi=0.02),
)

CONTINUAL = (
    Phase(550, 10, 256, (2, 5), 4, squad=0.08, babi=0.02, slots=None, plain_tokens=384),
    Phase(150, 10, 256, (2, 5), 4, squad=0.08, babi=0.02, slots=16, plain_tokens=384),
    Phase(2300, 16, 160, (2, 5), 1, filler=0.03, alike=0.9, slots=8, plain_tokens=240),
    Phase(400, 12, 224, (2, 5), 2, filler=0.1, alike=0.8, squad=0.04, slots=8, plain_tokens=320),
)


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on besides the data folder.

    Learning rates are multiplied by `continual_lr` in the second stage, where every `plain_every`-th step has its
    passages as text, and up to step `dense_until` every second step keeps all tokens. `decay_share` is the part
    of the second stage over which they fall.
    """

    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    warmup: tuple[Phase, ...] = WARMUP
    continual: tuple[Phase, ...] = CONTINUAL
    plain_every: int = 5
    dense_until: int = 2800
    continual_lr: float = 1.0
    tokenizer_groups: int = 25_000
    tokenizer_paragraphs: int = 8_000
    matrix_lr: float = 2e-3
    other_lr: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.3
    text_weight: float = 0.1
    clip_norm: float = 1.0


def nano() -> Recipe:
    """3.0 M parameters: what two shared CPU cores train in an hour and a half."""
    return Recipe()


def nano_wide() -> Recipe:
    """14.7 M parameters, 29 MB in bf16: for an accelerator. Not trained yet.

    It has what nano lacked: slots (10 heads in 5 memory layers keep 400 pairs of a passage, nano's 4 in 3 keep
    96, too few for values of several tokens), whole words (a vocabulary of 8,192), and longer phases of short
    passages that only their subjects tell apart, read with all tokens first.
    """
    return Recipe(
        shape=Shape(vocab_size=8192, width=320, mlp_width=832, num_layers=10, num_heads=10, num_kv_heads=10),
        warmup=(
            Phase(300, 64, 112, (1, 1), 2, drill=0.15),
            Phase(700, 64, 112, (1, 2), 1, filler=0.03, alike=0.9, drill=0.1),
            Phase(1000, 48, 192, (2, 4), 2, filler=0.1, alike=0.8, drill=0.05, squad=0.03),
            Phase(1500, 32, 384, (2, 5), 4, drill=0.03, books=0.04, squad=0.08, babi=0.02),
        ),
        continual=(
            Phase(2000, 64, 160, (2, 5), 1, filler=0.03, alike=0.9, plain_tokens=240),
            Phase(1000, 48, 224, (2, 5), 2, filler=0.1, alike=0.8, squad=0.04, plain_tokens=320),
            Phase(500, 48, 224, (2, 5), 3, alike=0.7, squad=0.06, babi=0.02, slots=16, plain_tokens=384),
            Phase(4000, 48, 256, (2, 5), 4, alike=0.7, squad=0.08, babi=0.02, slots=8, plain_tokens=384),
        ),
        dense_until=0,
    )


RECIPES = {"nano": nano, "nano-wide": nano_wide}
