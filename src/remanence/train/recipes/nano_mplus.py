"""The recipe of nano-mplus: M+ at the scale of nano, three stages of one curriculum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from remanence.errors import InputError
from remanence.lm.lora import LoraConfig
from remanence.train.guard import GuardConfig, check_counts
from remanence.train.recipes.names import check_stages
from remanence.train.schedule import Schedule


@dataclass(frozen=True)
class Stream:
    """A share of a phase's steps whose documents are running text of `tokens` (from, to), split as M+ does.

    Chunks have at least `min_chunk_tokens`, and at most what one write takes.
    """

    share: float
    tokens: tuple[int, int]
    min_chunk_tokens: int = 16


@dataclass(frozen=True)
class MPlusPhase:
    """A stretch of training. Each step draws its task by these chances.

    `full`: running text that reads the pool, nothing written. `revisit`: questions about documents of earlier steps.
    `whole_pool`: the fresh rows are read behind the pool, else alone ("two-chunk"). `repeat`: documents to be said
    again. `long`: the fresh rows are read out of long-term memory, where the retriever must find them. `chunks` bounds
    those of a document; `books` and `squad` are shares of documents, `scattered` of facts inside stretches of books.
    `streams` are running text instead: all documents of a step are of one stream, and have the last chunks of each, as
    many as the shortest has and `chunks` allows; read alone, one. `pool_gradient`: it goes through the writing also
    where rows are read behind the pool (the authors': only where they are read alone).
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
    """`method`: fields of `MPlusConfig`. `retriever`: the paper's loss, the contrastive one, or both.

    `detached`: the retriever's loss teaches projectors alone, as the authors have it. `read_long_rows`: one of these
    numbers of long-term slots is filled in a step. `past_writes` of earlier steps stand beside a step's own as
    negatives; the contrastive loss multiplies scores by `sharpness`. `kept_rows` are in long-term memory while it
    trains. `reading`: what the model that comes out is read with instead: fewer long-term rows than it was trained on
    (chosen on held-out facts that no exam asks), a threshold between questions and running text, and room for more than
    a million tokens, of which 64 rows hold 128. `sample_every`: as in `nano.Recipe`. `stage`: the run's name in its
    folder; it begins with the weights, pool and documents of the stage `after` there.
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
            raise InputError(f"the shares of a phase's streams add up to {most:g}", "give shares of up to 1 in all")
        if not 0 < self.decay_share <= 1:
            raise InputError(f"decay_share is {self.decay_share}", "give a share of the steps, above 0 and up to 1")


def nano_mplus() -> MPlusRecipe:
    """The bundled adapter of nano that reads and writes latent memory."""
    return MPlusRecipe()
