"""The recipe of SFT and DPO with memory: nano-chat answers out of what it recalls, and says when it does not know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from remanence.errors import InputError
from remanence.lm.lora import TARGETS, LoraConfig
from remanence.train.guard import GuardConfig, check_counts

ChatStage = Literal["sft", "dpo"]
CHAT_STAGES: tuple[ChatStage, ...] = ("sft", "dpo")
Step = Literal["sft", "dpo", "export"]


@dataclass(frozen=True)
class ChatPhase:
    """One stage. Each step draws `groups` of passages and asks up to `questions` of each, one question a row.

    `absent`: the chance that what a question asks for is in no reference of its row: its passage is left out, or (one
    of three) just the sentence that says it. `empty`: the chance of no reference at all. `text_every`: in every
    so many-th step references stand in the prompt as text (0: never). `lr` falls as a cosine after the first tenth.
    A step is `parts` such batches, whose gradients are averaged.
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
    """`base` is trained further, whole (`lora` None) or by an adapter that text is read with.

    No gradient reaches the writing of references. With an adapter the base writes them, as it was, so that its banks
    stay valid for what comes out; a whole model writes them as it is by then. `kept_tokens`: of memories, step by step
    in turn. `conversations`: a file of JSON lines to train on (`train/conversations.py`), `groups` times `questions` of
    them at once; None: the generator's facts. `row_tokens`: at most. `beta`: of DPO (Rafailov et al., 2023);
    `nll_weight`: of the chosen answers' own loss beside it.
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
            raise InputError(f"beta is {self.beta}", "give one above 0; the paper's is 0.01")

    def phase_of(self, stage: ChatStage) -> ChatPhase:
        return self.sft if stage == "sft" else self.dpo


def nano_chat() -> ChatRecipe:
    """The bundled adapter of nano that says when it does not know."""
    return ChatRecipe()


def large_chat(size: str) -> ChatRecipe:
    """Memory³ §6 for a whole model (give --start, and conversations): its rates and β, 8 tokens per head.

    Batch 512, 2,048 tokens, and three epochs of 1,286,938 conversations are the paper's; batch and length of DPO (one
    epoch over about 70,000 pairs), and that no other loss stands beside its own, are inferred.
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
    """The recipe of one of its stages, and of what comes out of it."""

    def made() -> ChatRecipe:
        return replace(make(), stages=(stage, "export"))

    made.__doc__ = getattr(make, "func", make).__doc__  # of a `partial` the function's
    return made
