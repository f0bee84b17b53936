"""The recipe of SFT and DPO with memory: answer from what was recalled, or say that it is not known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from remanence.errors import InputError, check_counts
from remanence.lm.lora import TARGETS, LoraConfig
from remanence.train.core.divergence import GuardConfig

ChatStage = Literal["sft", "dpo"]
CHAT_STAGES: tuple[ChatStage, ...] = ("sft", "dpo")
Step = Literal["sft", "dpo", "export"]


@dataclass(frozen=True)
class ChatPhase:
    """One stage. A step draws `groups` groups of passages and up to `questions` questions of each, one per row.

    - `absent`: chance that the answer is in no reference: its passage is left out, or (one in three) only its sentence.
    - `empty`: chance that a question has no references. `squad`: share of groups from SQuAD.
    - `text_every`: in every so many-th step the references stand in the prompt as text (0: never).
    - `parts`: batches per step, whose gradients are averaged. `lr` falls as a cosine after a tenth of the steps.
    """

    num_steps: int
    lr: float
    groups: int = 10
    passages: tuple[int, int] = (1, 4)
    questions: int = 5
    absent: float = 0.35
    empty: float = 0.05
    squad: float = 0.1
    text_every: int = 6
    parts: int = 1

    def __post_init__(self) -> None:
        check_counts(self, "num_steps", "groups", "questions", "parts")


@dataclass(frozen=True)
class ChatRecipe:
    """`base` is trained further: whole (`lora` None), or by an adapter that text is read with.

    No gradient reaches the writing of references. With an adapter the unchanged base writes them, so its banks stay
    valid; a whole model writes them with its current weights.

    - `kept_tokens`: kept tokens per KV head of a memory; the entries take turns, step by step (None: all).
    - `conversations`: a file of JSON lines (`train/examples/conversations.py`), of which a batch has `groups` times
      `questions`; None: generated facts. `row_tokens`: the longest row.
    - `beta`: of DPO (Rafailov et al., 2023); `nll_weight`: weight of the loss of the chosen answers beside it.
    """

    seed: int = 0
    base: str = "nano"
    lora: LoraConfig | None = field(
        default_factory=lambda: LoraConfig(rank=64, alpha=128, dropout=0.0, targets=(*TARGETS, "o_proj"))
    )
    sft: ChatPhase = field(default_factory=lambda: ChatPhase(1600, lr=8e-4, groups=16))
    dpo: ChatPhase = field(default_factory=lambda: ChatPhase(200, lr=2e-5, groups=10))
    beta: float = 0.1
    nll_weight: float = 0.5
    kept_tokens: tuple[int | None, ...] = (None, 8)
    conversations: str | None = None
    row_tokens: int = 512
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    checkpointing: bool = False
    eval_every: int = 200
    stages: tuple[Step, ...] = ("sft", "dpo", "export")
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        check_counts(self, "eval_every", "row_tokens")
        if self.beta <= 0:
            raise InputError(f"beta is {self.beta}", "use a value above 0; the paper has 0.01")

    def phase_of(self, stage: ChatStage) -> ChatPhase:
        return self.sft if stage == "sft" else self.dpo


def nano_chat() -> ChatRecipe:
    """The bundled adapter of nano that says when it does not know."""
    return ChatRecipe()


def large_chat(size: str) -> ChatRecipe:
    """Memory³ §6 for a whole model (needs --start, and conversations): its learning rates and β, 8 tokens per head.

    From the paper: batches of 512, 2,048 tokens, three epochs of 1,286,938 conversations. Inferred: batch and length of
    DPO (one epoch of about 70,000 pairs), and that DPO has no other loss.
    """
    return ChatRecipe(
        base=f"memory3-{size}",
        lora=None,
        sft=ChatPhase(7541, lr=5e-5, groups=8, questions=1, text_every=0, parts=64),
        dpo=ChatPhase(547, lr=4e-6, groups=8, questions=1, text_every=0, parts=16),
        beta=0.01,
        nll_weight=0.0,
        kept_tokens=(8,),
        row_tokens=2048,
        weight_decay=0.1,
        checkpointing=True,
    )


def only(make: Callable[[], ChatRecipe], stage: ChatStage) -> Callable[[], ChatRecipe]:
    """The same recipe with one stage and the export."""

    def single() -> ChatRecipe:
        return replace(make(), stages=(stage, "export"))

    single.__doc__ = getattr(make, "func", make).__doc__  # a `partial` has no docstring of its own
    return single
