"""The recipe that gives an existing model explicit memory: continual training, whole or by adapters with roles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from remanence.errors import InputError
from remanence.lm.lora import TARGETS, LoraConfig
from remanence.train.guard import GuardConfig, check_counts
from remanence.train.schedule import Schedule

FULL_LR, ADAPTER_LR = 5e-5, 5e-4
"""Of all weights: the paper's (Memory³ §5.3). Of adapters: chosen on small models."""
Role = Literal["write", "read"]
RetrofitStage = Literal["continual", "export"]


@dataclass(frozen=True)
class RetrofitRecipe:
    """`base`, which --start names, is trained further: whole (`lora` None), or an adapter for each of `roles`.

    Without the role "write" the base writes, and its banks stay valid; without "read" it reads, and without memory it
    answers as it always did. `memory_layers` None: the first half; `kept_tokens` step by step in turn (None: all), of
    which the smallest is what the model is used with (Memory³ §3: the first half, 8 of 128).

    A step draws `groups` of passages, asks up to `questions` of each, one question a row, as the model's own chat
    template has them, and `texts` rows of running text with references from the paragraphs before them. `squad` and
    `babi` are shares of groups, the others are the generator's. Every `plain_every`-th step (0: none) has no memory,
    passages stand in the prompt, and what the base predicts is the target (`plain_weight` times KL, every
    `text_stride`-th token), so that the model keeps what it could do. `lr` None: 5e-5 for all weights, 5e-4 for
    adapters.
    """

    seed: int = 0
    base: str = ""
    lora: LoraConfig | None = field(
        default_factory=lambda: LoraConfig(rank=64, alpha=128, dropout=0.0, targets=(*TARGETS, "o_proj"))
    )
    roles: tuple[Role, ...] = ("write", "read")
    memory_layers: tuple[int, ...] | None = None
    kept_tokens: tuple[int | None, ...] = (None, 8)
    reference_tokens: int = 128
    num_steps: int = 3000
    groups: int = 8
    passages: tuple[int, int] = (1, 4)
    facts: int = 3
    questions: int = 4
    squad: float = 0.3
    babi: float = 0.02
    texts: int = 4
    text_tokens: int = 208
    text_references: int = 5
    text_weight: float = 0.1
    text_stride: int = 4
    plain_every: int = 8
    plain_weight: float = 1.0
    lr: float | None = None
    schedule: Schedule = "wsd"
    warmup_steps: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    checkpointing: bool = False
    eval_every: int = 200
    stages: tuple[RetrofitStage, ...] = ("continual", "export")
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        counts = ("eval_every", "num_steps", "groups", "questions", "text_stride", "text_tokens", "reference_tokens")
        check_counts(self, *counts)
        if not 0 < self.decay_share <= 1:
            raise InputError(f"decay_share is {self.decay_share}", "give a share of the steps, above 0 and up to 1")
        if not (self.kept_tokens and self.roles):
            raise InputError("kept_tokens or roles is empty", "leave it out, or name at least one")
        if self.memory_layers == ():
            raise InputError("memory_layers is empty", "name at least one layer, or leave it null: the first half")

    @property
    def highest_lr(self) -> float:
        return self.lr or (ADAPTER_LR if self.lora else FULL_LR)

    @property
    def writes(self) -> bool:
        """Whether a gradient goes through the writing: without an adapter for it nothing there is trained."""
        return self.lora is None or "write" in self.roles

    @property
    def reads(self) -> bool:
        return self.lora is None or "read" in self.roles

    @property
    def used_kept_tokens(self) -> int | None:
        return min((kept for kept in self.kept_tokens if kept is not None), default=None)


def retrofit() -> RetrofitRecipe:
    """Gives an existing model (--start) explicit memory: adapters to write and to read with, or whole (lora=null)."""
    return RetrofitRecipe()
