"""The recipes of M+'s three stages; each is a run that begins with the result of the stage before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from remanence.lm.lora import LoraConfig
from remanence.train.core.schedule import Schedule
from remanence.train.recipes.nano_mplus import MPlusPhase, MPlusRecipe, Stream, nano_mplus

GPUS = 8
"""The authors' GPUs: a step has one document on each, and the learning rate of their files is multiplied by it."""
BANDS = ((4096, 8192), (8192, 16_384), (16_384, 32_768), (32_768, 65_536))
"""Tokens of long documents (SlimPajama). Short ones (fineweb-edu) have 64 to 4,096 tokens here (inferred)."""
SHORT = (64, 4096)
LONG_CHUNK = 384


def nano_stage1() -> MPlusRecipe:
    """nano-mplus, stage 1: short documents."""
    return _nano(0, "constant")


def nano_stage2() -> MPlusRecipe:
    """nano-mplus, stage 2: more documents, facts inside stretches of books; begins with stage 1."""
    return _nano(1, "constant")


def nano_stage3() -> MPlusRecipe:
    """nano-mplus, stage 3: long-term memory; begins with stage 2."""
    return _nano(2, "wsd")


def _nano(number: int, schedule: Schedule) -> MPlusRecipe:
    """The rate falls over the last 60 % of the whole recipe's 2,430 steps, which is 67 % of the third stage's 2,180."""
    whole = nano_mplus()
    (phase,) = whole.stages[number : number + 1]
    share = min(1.0, whole.decay_share * whole.num_steps / phase.num_steps)
    return replace(
        whole,
        stages=(phase,),
        num_steps=phase.num_steps,
        schedule=schedule,
        decay_share=round(share, 4),
        warmup_steps=whole.warmup_steps if number == 0 else 1,
        projector_documents=whole.projector_documents if number == 0 else 0,
        **_place(number),
    )


def _place(number: int) -> dict[str, Any]:
    return {"stage": f"stage{number + 1}", "after": f"stage{number}" if number else None}


def llama_stage1() -> MPlusRecipe:
    """M+ stage 1 (MemoryLLM-8B): 1.2 million steps on short documents, a pool of 12,800 rows, no retriever.

    The authors' learning rate falls to a tenth over the first 100,000 steps. Documents have up to 50, 100, then 200
    chunks.
    """
    short = (Stream(1.0, SHORT),)
    chunks = ((100_000, 50), (100_000, 100), (1_000_000, 200))
    phases = tuple(
        _phase(steps, most, short, whole_pool=0.8, full=0.1, long=0.0, revisit=0.2 / 1.2) for steps, most in chunks
    )
    return _llama(
        0, phases, 4.6e-5 * GPUS, schedule="tenth", decay_share=1 / 12, retriever_weight=0.0, writer_weight=0.0
    )


def llama_stage2() -> MPlusRecipe:
    """M+ stage 2: long and short documents, a fifth each, one epoch of 200,000 of each; the retriever begins."""
    streams = (*(Stream(0.2, band, LONG_CHUNK) for band in BANDS), Stream(0.2, SHORT))
    chunks = ((100_000, 50), (25_000, 100))
    phases = tuple(
        _phase(steps, most, streams, whole_pool=0.9, full=0.05, long=0.0, revisit=0.2 / 1.2) for steps, most in chunks
    )
    return _llama(1, phases, 4.6e-6 * GPUS, schedule="constant")


def llama_stage3() -> MPlusRecipe:
    """M+ stage 3: a pool of 10,240 rows beside 2,560 read out of long-term memory of 153,600.

    The shares are the paper's; the authors' file has 0.025 for each long band and 0.9 for short documents. The number
    of steps is not given: 720,000 documents are inferred.
    """
    streams = (*(Stream(0.2, band, LONG_CHUNK) for band in BANDS), Stream(0.2, SHORT))
    chunks = ((20_000, 100), (70_000, 200))
    phases = tuple(
        _phase(steps, most, streams, whole_pool=0.8, full=0.05, long=1.0, revisit=0.2 / 1.2) for steps, most in chunks
    )
    return _llama(2, phases, 4.6e-6 * GPUS, schedule="constant")


def _phase(steps: int, most_chunks: int, streams: tuple[Stream, ...], **chances: float) -> MPlusPhase:
    """One phase. `revisit`: a chance of 0.2 and never twice in a row, which is every sixth step."""
    return MPlusPhase(
        steps,
        documents=GPUS,
        chunks=(most_chunks, most_chunks),
        repeat=0.1,
        books=0.0,
        squad=0.0,
        streams=streams,
        pool_gradient=False,
        **chances,
    )


def _llama(number: int, phases: tuple[MPlusPhase, ...], lr: float, **fields: Any) -> MPlusRecipe:
    """What all three stages share: Llama-3.1-8B, LoRA of rank 16, 512 tokens as 256 rows, projectors of width 256.

    Unlike nano-mplus, as in M+: no loss on attention to rows (`look_weight`), random initial projectors, no rows of
    earlier steps as negatives. The authors do not clip gradients; this recipe does. Other differences of a step from
    the paper are listed in docs/training.md ("M+, stage by stage").
    """
    has_long = number == 2
    method = {
        "chunk_tokens": 512,
        "min_chunk_tokens": 16,
        "write_rows": 256,
        "pool_blocks": 40 if has_long else 50,
        "long_blocks": 10 if has_long else 0,
        "key_width": 256,
        "ranked": "rows",
        "short": "reference",
    }
    recipe = MPlusRecipe(
        lora=LoraConfig(rank=16, alpha=32, dropout=0.1),
        method=method,
        stages=phases,
        num_steps=sum(phase.num_steps for phase in phases),
        base="meta-llama/Llama-3.1-8B",
        retriever="balanced",
        detached=True,
        text_weight=1.0,
        look_layers=(),
        look_weight=0.0,
        quiet_weight=0.0,
        read_long_rows=(2560,),
        past_writes=0,
        kept_rows=153_600,
        reading={},
        projector_documents=0,
        max_questions=GPUS,
        sentence_tokens=2048,
        writer_weight=1.0,
        lr=lr,
        projector_lr=1e-4,
        warmup_steps=1,
        beta2=0.999,
        eval_every=10_000,
        **_place(number),
    )
    return replace(recipe, **fields)


STAGES: dict[str, dict[str, Callable[[], MPlusRecipe]]] = {
    "stage1": {"nano": nano_stage1, "llama-3.1-8b": llama_stage1},
    "stage2": {"nano": nano_stage2, "llama-3.1-8b": llama_stage2},
    "stage3": {"nano": nano_stage3, "llama-3.1-8b": llama_stage3},
}
"""stage -> size -> function that makes the recipe."""
