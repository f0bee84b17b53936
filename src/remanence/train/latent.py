"""Trains M+: adapters, projectors and first vectors, with the pool as its memory from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from remanence.lm import attention
from remanence.methods.mplus.pool import Pool
from remanence.train.documents import MPlusDocument, gather, questions
from remanence.train.latent_run import MPlusRun, restore, state
from remanence.train.latent_tasks import read_sentences, step_loss
from remanence.train.loop import Task
from remanence.train.losses import targets
from remanence.train.model import cast
from remanence.train.recipes.nano import Phase
from remanence.train.recipes.nano_mplus import MPlusPhase
from remanence.train.rows import facts_row
from remanence.train.samples import from_pool, samples_every
from remanence.train.schedule import rate_at
from remanence.train.shares import memory_shares


def phase_of(stages: tuple[MPlusPhase, ...], step: int) -> tuple[int, MPlusPhase]:
    for number, phase in enumerate(stages):
        if step < phase.num_steps:
            return number, phase
        step -= phase.num_steps
    return len(stages) - 1, stages[-1]


def latent(run: MPlusRun, num_steps: int) -> Task:
    """The task of M+: `num_steps` is what the learning rate falls towards."""
    run.lm.model.train()
    recipe = run.recipe

    def loss(number: int) -> tuple[Tensor, int]:
        _, phase = phase_of(run.recipe.stages, number)
        return step_loss(run, phase, Random(f"{run.recipe.seed} {run.recipe.stage} {number}"))

    def rate(step: int) -> float:
        return rate_at(recipe.schedule, step, num_steps, recipe.warmup_steps, recipe.decay_share)

    def found(step: int) -> dict[str, Any]:
        return {"phase": phase_of(run.recipe.stages, step - 1)[0] + 1, **evaluate(run)}

    def back(tensors: Mapping[str, Tensor], values: Any) -> None:
        restore(run, tensors, values)

    return Task(
        recipe.stage,
        loss,
        rate,
        found,
        recipe.eval_every,
        sample=lambda step: from_pool(run),
        sample_every=samples_every(recipe),
        recipe=recipe,
        state=lambda: state(run),
        restore=back,
        smaller="a phase's documents or chunks (--set stages.0.documents=8)",
    )


@torch.no_grad()
def evaluate(run: MPlusRun, rows: int = 24) -> dict[str, float]:
    """Exact match on held-out facts: right after each was written, and after all of them and twice as many texts.

    `share_*`: then, where answers are read, the attention on the pool and on what was found in long-term memory.
    """
    run.lm.model.eval()
    rng, limit = Random(f"{run.recipe.seed} heldout"), run.method.config.chunk_tokens
    documents = []
    while len(documents) < rows:
        row = facts_row(rng, Phase(0, 1, 0, (1, 1), 3), "heldout")
        documents.append(
            MPlusDocument([ids[:limit] for ids in run.encoder(*row.references)], questions(row, run.encoder))
        )
    start = replace(run.method.fresh(run.lm), row_LNC=run.pool.row_LNC)
    pool, alone = start, []
    for document in documents:
        alone.append(_added(run, start, document.chunks[0]))
        pool = _added(run, pool, document.chunks[0])
    for text in (run.corpora.paragraphs or ["no books at hand"])[100 : 100 + 2 * rows]:
        pool = _added(run, pool, run.encoder(text)[0][:limit])
    sentences = gather(rng, documents, 2 * rows, run.encoder.pad)
    found = {}
    for name, pools in (("fresh", [alone[d] for d in sentences.of_Q.tolist()]), ("later", [pool])):
        prefix: Any = run.method.prefix(run.lm, pools, sentences.asked_QT.long())
        watch = attention.AttentionCapture(frozenset(range(run.lm.dims.num_layers)))
        losses, token, whole = read_sentences(run, prefix, sentences, watch)
        found |= {f"{name}_exact": round(whole, 3), f"{name}_token": round(token, 3)}
        found |= {f"{name}_loss": round(losses.answer.item(), 3)}
    asked_N = targets(sentences.batch.kind_BT, 10**6)
    run.lm.model.train()
    return found | memory_shares(watch.seen, sentences.batch.ids_BT.shape[1], 1, asked_N)


def _added(run: MPlusRun, pool: Pool, ids: list[int]) -> Pool:
    with cast(run.lm.device, run.recipe):
        return run.method.add(run.lm, pool, ids)
