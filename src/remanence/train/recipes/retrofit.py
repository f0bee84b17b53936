"""The recipe that gives an existing model explicit memory: continual training, whole or by adapters with roles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from remanence.errors import InputError, check_counts
from remanence.lm.lora import TARGETS, LoraConfig
from remanence.train.core.divergence import GuardConfig
from remanence.train.core.fields import check_decay
from remanence.train.core.schedule import Schedule

FULL_LR, ADAPTER_LR = 5e-5, 5e-4
"""Learning rates of all weights (Memory³ §5.3), and of adapters (chosen on small models)."""
Role = Literal["write", "read"]
RetrofitStage = Literal["continual", "export"]


@dataclass(frozen=True)
class RetrofitRecipe:
    """`base`, which --start names, is trained further: whole (`lora` None), or by an adapter for each of `roles`.

    Without the role "write" the base writes, and its banks stay valid. Without "read" the base reads, and answers
    without memory as before.

    - `memory_layers`: None is the first half. `kept_tokens`: kept tokens per KV head; the entries take turns, step by
      step (None: all). The model is used with the smallest (Memory³ §3: the first half of the layers, 8 of 128 tokens).
    - A step draws `groups` groups of `passages` (fewest, most) and up to `questions` questions of each, one per row, in
      the model's own chat template. `squad`, `babi`: shares of groups; the generator has the rest.
    - It also has `texts` rows of running text, with `text_references` references from the paragraphs before them.
    - Every `plain_every`-th step (0: none) has no memory: passages stand in the prompt, and the base's predictions are
      the target (`plain_weight` times KL at every `text_stride`-th token), which preserves the model's abilities.
    - `lr`: None is 5e-5 for all weights, 5e-4 for adapters.
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
        check_decay(self.decay_share)
        if not (self.kept_tokens and self.roles):
            raise InputError("kept_tokens or roles is empty", "leave it out, or give at least one entry")
        if self.memory_layers == ():
            raise InputError("memory_layers is empty", "name at least one layer, or leave it null: the first half")

    @property
    def highest_lr(self) -> float:
        return self.lr or (ADAPTER_LR if self.lora else FULL_LR)

    @property
    def writes(self) -> bool:
        """Whether a gradient reaches the writing: only if something there is trained."""
        return self.lora is None or "write" in self.roles

    @property
    def reads(self) -> bool:
        return self.lora is None or "read" in self.roles

    @property
    def used_kept_tokens(self) -> int | None:
        return min((count for count in self.kept_tokens if count is not None), default=None)


def retrofit() -> RetrofitRecipe:
    """Gives an existing model (--start) explicit memory: adapters to write and to read with, or whole (lora=null)."""
    return RetrofitRecipe()
