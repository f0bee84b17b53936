"""The recipe of nano: sizes, mixture, curriculum of the warm-up, and of the training with memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from remanence.errors import InputError
from remanence.train.guard import GuardConfig, check_counts
from remanence.train.schedule import Schedule
from remanence.train.shapes import Shape


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
    Phase(150, 48, 112, (1, 1), 2, drill=0.1),
    Phase(450, 48, 112, (1, 1), 3, drill=0.05, squad=0.02),
    Phase(300, 30, 176, (1, 3), 3, drill=0.03, squad=0.05),
    Phase(100, 17, 320, (2, 5), 3, drill=0.03, books=0.02, squad=0.06, babi=0.02),
)

CONTINUAL = (Phase(9000, 32, 176, (1, 4), 3, squad=0.06, babi=0.01, slots=8, plain_tokens=320),)


StageName = Literal["warmup", "continual", "control", "detached", "scratch", "scratch-continual", "export"]


@dataclass(frozen=True)
class Stage:
    """`after`: the stage whose weights it begins with (None: its own). It has the `phases` of that name.

    `reads`: with memory. `writes`: a gradient goes through the writing of memories too. `falls`: the rate does.
    """

    after: StageName | None
    phases: Literal["warmup", "continual"]
    reads: bool = True
    writes: bool = True
    falls: bool = True


STAGES: dict[StageName, Stage] = {
    "warmup": Stage(None, "warmup", reads=False, falls=False),
    "continual": Stage("warmup", "continual"),
    "control": Stage("warmup", "continual", reads=False),
    "detached": Stage("warmup", "continual", writes=False),
    "scratch": Stage(None, "warmup", falls=False),
    "scratch-continual": Stage("scratch", "continual"),
}
"""Two are a model's; the others are what they are compared with (Memory³ Figure 11; `detached` is not in the paper)."""


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on besides the data folder.

    Learning rates are multiplied by `continual_lr` in the second stage, where every `plain_every`-th step has its
    passages as text, and every `whole_every`-th of the others keeps all tokens (0: none). `decay_share` is the part
    of the second stage over which they fall, as `schedule` says. `text_stride`: of text, every so many-th token
    counts. `stages`: those of a whole run. `dtype`: of the model and its products; what is trained is float32 in both.
    `sample_every`: answers to held-out questions are logged every so many steps (None: as evaluations are, 0: never).
    `z_weight`: see `answer_losses`. `checkpointing`: layers are computed again in the backward pass instead of kept.
    """

    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    warmup: tuple[Phase, ...] = WARMUP
    continual: tuple[Phase, ...] = CONTINUAL
    plain_every: int = 8
    whole_every: int = 2
    continual_lr: float = 1.0
    tokenizer_groups: int = 25_000
    tokenizer_paragraphs: int = 8_000
    matrix_rule: Literal["muon", "adamw"] = "muon"
    matrix_lr: float = 2e-3
    other_lr: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.9
    schedule: Schedule = "wsd"
    text_weight: float = 0.1
    text_stride: int = 8
    z_weight: float = 0.0
    checkpointing: bool = False
    eval_every: int = 200
    sample_every: int | None = None
    stages: tuple[StageName, ...] = ("warmup", "continual", "export")
    clip_norm: float = 1.0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        check_counts(self, "eval_every", "text_stride", *(["sample_every"] if self.sample_every else []))
        if not 0 < self.decay_share <= 1:
            raise InputError(f"decay_share is {self.decay_share}", "give a share of the steps, above 0 and up to 1")

    def phases_of(self, stage: Stage) -> tuple[Phase, ...]:
        return self.warmup if stage.phases == "warmup" else self.continual

    def num_steps_of(self, stage: Stage) -> int:
        return sum(phase.num_steps for phase in self.phases_of(stage))


def nano() -> Recipe:
    """The bundled model: short passages of facts, first as text, then as explicit memory."""
    return Recipe()
