"""Trains M+: adapters, projectors and first vectors, with the pool as its memory from step to step."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from remanence.latent.pool import Pool
from remanence.train.documents import LatentDocument, gather, questions
from remanence.train.latent_run import LatentRun, save
from remanence.train.latent_tasks import read_sentences, step_loss
from remanence.train.recipes.nano import Phase
from remanence.train.recipes.nano_mplus import LatentPhase
from remanence.train.rows import facts_row


def phase_of(stages: tuple[LatentPhase, ...], step: int) -> tuple[int, LatentPhase]:
    for number, phase in enumerate(stages):
        if step < phase.num_steps:
            return number, phase
        step -= phase.num_steps
    return len(stages) - 1, stages[-1]


def train(run: LatentRun, num_steps: int, stop: int | None = None) -> None:
    """Up to `num_steps`, which the learning rate falls towards; `stop`: no further than this step for now."""
    run.lm.model.train()
    saved = time.monotonic()
    while run.step < min(num_steps, stop or num_steps):
        begun = time.monotonic()
        stage, phase = phase_of(run.recipe.stages, run.step)
        loss = step_loss(run, phase, Random(f"{run.recipe.seed} latent {run.step}"))
        loss.backward()
        _apply(run, num_steps)
        run.step, run.seconds = run.step + 1, run.seconds + time.monotonic() - begun
        if run.step % 25 == 0:
            means = {k: round(v / run.sums[f"#{k}"], 4) for k, v in run.sums.items() if not k.startswith("#")}
            run.log({"step": run.step, "stage": stage + 1, "seconds": round(run.seconds), **means})
            run.sums.clear()
        if run.step % run.recipe.eval_every == 0:
            run.log({"step": run.step, "stage": stage + 1, **evaluate(run)})
        if time.monotonic() - saved > 180:
            save(run)
            saved = time.monotonic()
    save(run)


def _apply(run: LatentRun, num_steps: int) -> None:
    recipe, parameters = run.recipe, list(run.trained.values())
    clip_grad_norm_(parameters, recipe.clip_norm)
    rise, fall = (run.step + 1) / recipe.warmup_steps, (1 - run.step / num_steps) / recipe.decay_share
    for group, rate in zip(run.optimizer.param_groups, (recipe.lr, recipe.projector_lr), strict=True):
        group["lr"] = rate * min(1.0, rise, max(0.02, fall))
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def evaluate(run: LatentRun, rows: int = 24) -> dict[str, float]:
    """Exact match on held-out facts: right after each was written, and after all of them and twice as many texts."""
    run.lm.model.eval()
    rng, limit = Random(f"{run.recipe.seed} heldout"), run.method.config.chunk_tokens
    documents = []
    while len(documents) < rows:
        row = facts_row(rng, Phase(0, 1, 0, (1, 1), 3), "heldout")
        documents.append(
            LatentDocument([ids[:limit] for ids in run.encoder(*row.references)], questions(row, run.encoder))
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
        losses, token, whole = read_sentences(run, prefix, sentences)
        found |= {f"{name}_exact": round(whole, 3), f"{name}_token": round(token, 3)}
        found |= {f"{name}_loss": round(losses.answer.item(), 3)}
    run.lm.model.train()
    return found


def _added(run: LatentRun, pool: Pool, ids: list[int]) -> Pool:
    with torch.autocast(run.lm.device.type, torch.bfloat16):
        return run.method.add(run.lm, pool, ids)
