"""The recipes of Memory³'s pretraining on running text: a warm-up without memory, then continual training with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from remanence.errors import InputError, check_counts
from remanence.train.core.divergence import GuardConfig
from remanence.train.core.fields import check_decay, check_stages
from remanence.train.core.schedule import Schedule
from remanence.train.core.shapes import SHAPES, MemoryShape, Shape


@dataclass(frozen=True)
class SequenceRecipe:
    """Everything that a run depends on, besides the folder of sequences.

    - `stage`: the name of its checkpoints; `after`: the stage that it begins with (None: fresh weights).
    - A step reads `rows` sequences, in `parts` batches whose gradients are added: as many as the device needs.
    - `reads`: with memory, as `memory` says. `writes`: a gradient reaches the writing of references.
    - `schedule` multiplies `lr` (see `rate_at`). `weight_decay`: of matrices.
    - `checkpointing`: activations are recomputed in the backward pass.
    - `eval_rows` held-out sequences are evaluated before the first step and every `eval_every` steps.
    """

    stage: str
    num_steps: int
    lr: float
    warmup_steps: int
    after: str | None = None
    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    sequence_tokens: int = 2048
    rows: int = 2048
    parts: int = 1
    reads: bool = False
    writes: bool = True
    memory: MemoryShape = field(default_factory=MemoryShape)
    schedule: Schedule = "wsd"
    decay_share: float = 0.1
    matrix_rule: Literal["muon", "adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    checkpointing: bool = False
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    eval_every: int = 200
    eval_rows: int = 64
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        check_counts(self, "num_steps", "rows", "parts", "eval_every", "eval_rows")
        check_stages(stage=self.stage, after=self.after)
        if self.rows % self.parts:
            raise InputError(
                f"{self.rows} rows cannot be divided into {self.parts} parts", "set parts to a divisor of rows"
            )
        check_decay(self.decay_share)
        room = self.shape.max_positions - self.memory.reference_tokens - 16  # for the tokens in front of memories
        if self.reads and self.sequence_tokens > room:
            raise InputError(
                f"{self.sequence_tokens} tokens and a memory exceed the model's {self.shape.max_positions} positions",
                "raise shape.max_positions, or lower sequence_tokens",
            )

    @property
    def step_tokens(self) -> int:
        """Tokens of one step, without those of references, as in the paper."""
        return self.rows * self.sequence_tokens


def warmup_2b() -> SequenceRecipe:
    """The warm-up of Memory³'s model: 44 layers, 3.1 T tokens in steps of 4 M (§5.1, §5.2).

    From the paper: sequences of 2048 tokens, weight decay 0.1, a learning rate of 8e-4 (figure), constant after its
    rise and falling over the last tenth. By its figure the authors lowered it by hand to 6e-4, and from about two
    thirds on it fell to about 2.7e-4. Here the plan is followed, and `guard` lowers the rate after a divergence.
    [inferred]: 2048 rows per step, betas, clipping, 2,000 steps of rise. [ours]: parts, checkpointing.
    """
    return SequenceRecipe(
        stage="warmup",
        num_steps=739_098,
        lr=8e-4,
        warmup_steps=2000,
        shape=SHAPES["2b"],
        parts=32,
        checkpointing=True,
        eval_every=1000,
    )


def continual_2b() -> SequenceRecipe:
    """Continual training of Memory³'s model: 120 B tokens, five memories for each chunk of 64 (§3.6, §5.3).

    From the paper: a learning rate of 5e-5 (figure), 8 of 128 tokens kept, in half of the layers. [inferred]: a
    gradient reaches the writing; the rate rises over 1.4 M sequences (figure: 1 to 2).
    """
    return replace(
        warmup_2b(), stage="continual", after="warmup", num_steps=28_610, lr=5e-5, warmup_steps=700, reads=True
    )


def warmup_09b() -> SequenceRecipe:
    """The warm-up of the model of Memory³'s Figure 11: 0.92 B parameters, 60 B tokens.

    [inferred]: what the paper does not say is as at 2b.
    """
    return replace(warmup_2b(), shape=SHAPES["0.9b"], num_steps=14_305, warmup_steps=1000, parts=16)


def continual_09b() -> SequenceRecipe:
    """Continual training of the model of Memory³'s Figure 11: 22 B tokens. [inferred]: the rest is as at 2b."""
    return replace(continual_2b(), shape=SHAPES["0.9b"], num_steps=5_245, warmup_steps=500, parts=16)


def warmup_nano() -> SequenceRecipe:
    """The warm-up at the scale of nano: 16 sequences of 512 tokens per step. All sizes and rates are ours."""
    return replace(
        warmup_2b(),
        shape=SHAPES["nano"],
        sequence_tokens=512,
        rows=16,
        parts=1,
        num_steps=2000,
        lr=1e-3,
        warmup_steps=100,
        checkpointing=False,
        eval_every=200,
        eval_rows=32,
    )


def continual_nano() -> SequenceRecipe:
    """Continual training at the scale of nano. Sizes and rates are ours; the rate is a fifth of the warm-up's."""
    return replace(
        warmup_nano(), stage="continual", after="warmup", num_steps=500, lr=2e-4, warmup_steps=20, reads=True
    )
