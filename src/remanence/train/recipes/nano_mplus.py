"""The recipe of nano-mplus: M+ at the scale of nano, with three phases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from remanence.errors import InputError, check_counts
from remanence.lm.lora import LoraConfig
from remanence.train.core.divergence import GuardConfig
from remanence.train.core.fields import check_decay, check_stages
from remanence.train.core.schedule import Schedule


@dataclass(frozen=True)
class Stream:
    """A share of a phase's steps whose documents are running text of `tokens` (from, to) tokens, split as in M+.

    Chunks have at least `min_chunk_tokens` tokens, and at most as many as one write takes.
    """

    share: float
    tokens: tuple[int, int]
    min_chunk_tokens: int = 16


@dataclass(frozen=True)
class MPlusPhase:
    """A part of a run of `num_steps` steps. Each step draws its task by these chances.

    - `full`: running text reads the pool; nothing is written. `revisit`: questions about documents of earlier steps.
    - Otherwise `documents` documents of `chunks` (fewest, most) chunks are written, then read. `whole_pool`: their rows
      are read behind the pool, else alone ("two-chunk"). `long`: they are read out of long-term memory, where the
      retriever must find them.
    - `repeat`: chance that a document is to be repeated. `books`, `squad`: shares of documents. `scattered`: share of
      documents whose facts are inside stretches of books.
    - `streams`: running text instead. All documents of a step are of one stream, each with its last chunks: as many as
      the shortest has and `chunks` allows; if read alone, one.
    - `pool_gradient`: a gradient reaches the writing also if rows are read behind the pool (authors: only if alone).
    """

    num_steps: int
    documents: int = 16
    chunks: tuple[int, int] = (1, 3)
    full: float = 0.15
    revisit: float = 0.0
    whole_pool: float = 0.8
    long: float = 0.0
    repeat: float = 0.10
    books: float = 0.15
    squad: float = 0.08
    scattered: float = 0.0
    streams: tuple[Stream, ...] = ()
    pool_gradient: bool = True


STAGES = (
    MPlusPhase(150, chunks=(1, 2)),
    MPlusPhase(100, documents=24, chunks=(1, 2), full=0.15, whole_pool=0.9, scattered=0.2),
    MPlusPhase(2180, documents=20, chunks=(1, 2), full=0.08, revisit=0.1, whole_pool=0.95, long=0.8, scattered=0.3),
)


@dataclass(frozen=True)
class MPlusRecipe:
    """Everything that a run of M+ depends on, besides the data folder.

    - `method`: fields of `MPlusConfig`. `reading`: those that the exported model is used with instead: fewer long-term
      rows than in training (chosen on held-out facts that no evaluation uses), a threshold between questions and
      running text, and room for more than a million tokens (64 rows hold 128 tokens).
    - `stages`: the phases of the run. `stage`: the name of its checkpoints; it begins with the weights, pool and
      documents of stage `after`.
    - `retriever`: the paper's loss ("balanced"), the contrastive one, or both. `detached`: the loss trains the
      projectors alone, as in the authors' code. `sharpness`: multiplies scores in the contrastive loss.
    - `past_writes`: writes of earlier steps that stand beside a step's own as negatives. `read_long_rows`: in each step
      one of these numbers of long-term slots is filled. `kept_rows`: capacity of long-term memory in training.
    - `*_weight`: weights of the losses of retriever, writer's retriever, text, base model (`plain`), unrelated text
      (`quiet`), and attention to rows in `look_layers` (`look`).
    - `projector_documents`: documents that the initial projectors are computed from (0: random projectors).
    - `sample_every`, `schedule` and the like: as in `NanoRecipe`.
    """

    seed: int = 0
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=64, alpha=128, dropout=0.0))
    method: dict[str, Any] = field(
        default_factory=lambda: {
            "chunk_tokens": 128,
            "min_chunk_tokens": 8,
            "write_rows": 64,
            "pool_blocks": 2,
            "long_blocks": 5,
            "key_width": 64,
            "ranked": "writes",
            "short": "own",
        }
    )
    stages: tuple[MPlusPhase, ...] = STAGES
    retriever: Literal["balanced", "contrastive", "both"] = "contrastive"
    detached: bool = False
    retriever_weight: float = 1.0
    writer_weight: float = 0.1
    text_weight: float = 0.1
    plain_weight: float = 1.0
    quiet_weight: float = 0.5
    look_layers: tuple[int, ...] = (3,)
    look_weight: float = 0.7
    read_long_rows: tuple[int, ...] = (192, 320)
    past_writes: int = 24
    sharpness: float = 30.0
    kept_rows: int = 16_384
    num_steps: int = 2430
    base: str = "nano"
    stage: str = "latent"
    after: str | None = None
    reading: dict[str, Any] = field(
        default_factory=lambda: {"long_blocks": 1, "least_relevance": 0.28, "capacity_rows": 1_000_000}
    )
    projector_documents: int = 640
    max_questions: int = 24
    sentence_tokens: int = 80
    lr: float = 1.2e-3
    projector_lr: float = 3e-4
    schedule: Schedule = "wsd"
    warmup_steps: int = 60
    decay_share: float = 0.6
    beta2: float = 0.98
    clip_norm: float = 1.0
    eval_every: int = 200
    sample_every: int | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        check_counts(
            self, "eval_every", "num_steps", "sentence_tokens", *(["sample_every"] if self.sample_every else [])
        )
        check_stages(stage=self.stage, after=self.after)
        if (most := max(sum(stream.share for stream in phase.streams) for phase in self.stages)) > 1 + 1e-9:
            raise InputError(f"the shares of a phase's streams add up to {most:g}", "use shares of at most 1 in total")
        check_decay(self.decay_share)


def nano_mplus() -> MPlusRecipe:
    """The bundled adapter of nano that reads and writes latent memory."""
    return MPlusRecipe()
