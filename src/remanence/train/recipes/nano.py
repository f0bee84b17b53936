"""The recipe of nano: sizes, data mixture, and the phases of its warm-up and of its training with memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from remanence.errors import check_counts
from remanence.train.core.divergence import GuardConfig
from remanence.train.core.fields import check_decay
from remanence.train.core.schedule import Schedule
from remanence.train.core.shapes import Shape


@dataclass(frozen=True)
class NanoPhase:
    """A part of a stage: `num_steps` steps of `rows` examples, each of `tokens` tokens.

    - `passages`: (fewest, most) passages per example; `facts`: the most facts per passage.
    - `filler`, `alike`: options of the generator (`data.facts.sample_group`).
    - `drill` (random tokens to copy), `books`, `squad`, `babi`: shares of examples; the generator has the rest.
    - `slots`: tokens of a memory that are kept per KV head; None: all.
    - `plain_tokens`: length of examples in steps that have their passages as text, in stages with memory.
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
    NanoPhase(150, 48, 112, (1, 1), 2, drill=0.1),
    NanoPhase(450, 48, 112, (1, 1), 3, drill=0.05, squad=0.02),
    NanoPhase(300, 30, 176, (1, 3), 3, drill=0.03, squad=0.05),
    NanoPhase(100, 17, 320, (2, 5), 3, drill=0.03, books=0.02, squad=0.06, babi=0.02),
)

CONTINUAL = (NanoPhase(9000, 32, 176, (1, 4), 3, squad=0.06, babi=0.01, slots=8, plain_tokens=320),)


StageName = Literal["warmup", "continual", "control", "detached", "scratch", "scratch-continual", "export"]


@dataclass(frozen=True)
class NanoStage:
    """`after`: the stage whose weights it begins with (None: fresh weights). `phases`: which phases it has.

    `reads`: examples read memories. `writes`: a gradient reaches the writing. `falls`: the learning rate decays.
    """

    after: StageName | None
    phases: Literal["warmup", "continual"]
    reads: bool = True
    writes: bool = True
    falls: bool = True


STAGES: dict[StageName, NanoStage] = {
    "warmup": NanoStage(None, "warmup", reads=False, falls=False),
    "continual": NanoStage("warmup", "continual"),
    "control": NanoStage("warmup", "continual", reads=False),
    "detached": NanoStage("warmup", "continual", writes=False),
    "scratch": NanoStage(None, "warmup", falls=False),
    "scratch-continual": NanoStage("scratch", "continual"),
}
"""`warmup` and `continual` make the model; the others are comparisons (Memory³ Figure 11; `detached` is ours)."""


@dataclass(frozen=True)
class NanoRecipe:
    """Everything that a run depends on, besides the data folder.

    - `warmup`, `continual`: the phases of the two stages; `stages`: the stages of a whole run.
    - `plain_every`: in stages with memory every so many-th step has its passages as text (0: none). `whole_every`:
      every so many-th of the other steps keeps all tokens of a memory (0: none).
    - `matrix_lr`, `other_lr`: learning rates of matrices and of other parameters; `continual_lr` multiplies both in
      stages with memory. `schedule`, `warmup_steps`, `decay_share`: see `rate_at`.
    - `text_weight`: weight of text tokens beside answers; every `text_stride`-th counts. `z_weight`: see
      `answer_losses`.
    - `checkpointing`: activations are recomputed in the backward pass. `dtype`: of weights and products; the optimizer
      is float32 in any case.
    - `sample_every`: steps between example answers in the log (None: as `eval_every`; 0: never).
    """

    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    warmup: tuple[NanoPhase, ...] = WARMUP
    continual: tuple[NanoPhase, ...] = CONTINUAL
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
        check_decay(self.decay_share)

    def phases_of(self, stage: NanoStage) -> tuple[NanoPhase, ...]:
        return self.warmup if stage.phases == "warmup" else self.continual

    def num_steps_of(self, stage: NanoStage) -> int:
        return sum(phase.num_steps for phase in self.phases_of(stage))


def nano() -> NanoRecipe:
    """The bundled model: short passages of facts, first as text, then as explicit memory."""
    return NanoRecipe()
