"""Stage two, continual training with memory: the same questions, the passages written and read as memories."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from remanence.lm.lm import LM
from remanence.methods.memory3 import Group, Memory3, Memory3Config, paper
from remanence.train.batches import pack, plain_batch, with_questions
from remanence.train.loop import TEXT_STRIDE, Run, evaluate_plain, finish_step, phase_at, plain_losses, save
from remanence.train.losses import Losses, answer_losses, exact_answers, targets
from remanence.train.model import logits_at, use_fast_attention
from remanence.train.recipes.nano import Phase
from remanence.train.rows import Encoder, Row, draw_row, facts_row


@dataclass(frozen=True)
class MemoryBatch:
    """`references[row]`: token lists, written as memories; `ids_BT`: `<s>` and the questions about them."""

    references: list[list[list[int]]]
    ids_BT: Tensor
    kind_BT: Tensor


def memory_batch(run: Run, phase: Phase, seed: str, split: str = "train") -> MemoryBatch:
    """Rows of the phase that have references (books and drills are for plain steps)."""
    rng = Random(seed)
    only_references = replace(phase, drill=0.0, books=0.0)
    vocab_size = len(run.encoder.tokenizer)
    if split == "train":
        rows = [draw_row(rng, only_references, run.corpora, vocab_size) for _ in range(phase.rows)]
    else:
        rows = [facts_row(rng, phase, split) for _ in range(phase.rows)]
    return pack_memory(rows, phase.tokens, run.encoder)


def pack_memory(rows: list[Row], tokens: int, encoder: Encoder) -> MemoryBatch:
    references = [[ids[:128] for ids in encoder(*row.references)] for row in rows]
    packed = pack([with_questions(row, encoder, tokens, [], []) for row in rows], tokens, encoder.pad)
    return MemoryBatch(references, packed.ids_BT, packed.kind_BT)


def read_memories(lm: LM, config: Memory3Config, batch: MemoryBatch, index_N: Tensor) -> Tensor:
    """logits_NV at chosen positions; every row's references are written, and read by all of its tokens."""
    method = Memory3(config)
    memories = iter(method.write(lm, [ids for row in batch.references for ids in row]))
    groups = [[Group(0, tuple(next(memories) for _ in row))] for row in batch.references]
    T = batch.ids_BT.shape[1]
    prefix = method.prefix(lm, groups, [T] * len(groups))
    positions_BT = prefix.offset_tokens + torch.arange(T)[None]
    model: Any = lm.model
    hidden_BTC = model.model(batch.ids_BT, position_ids=positions_BT, use_cache=False, memory=prefix).last_hidden_state
    return logits_at(model, hidden_BTC.flatten(0, 1)[index_N])


def memory_losses(run: Run, lm: LM, config: Memory3Config, batch: MemoryBatch) -> Losses:
    index_N = targets(batch.kind_BT, TEXT_STRIDE, run.step)
    with torch.autocast("cpu", torch.bfloat16):
        logits_NV = read_memories(lm, config, batch, index_N)
    return answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, run.recipe.text_weight)


def continual(run: Run, num_steps: int, stage: str = "continual") -> None:
    """Trains with memory until step `num_steps` of this stage; every `plain_every`-th step is without it.

    All steps are without it in stage "control".
    The learning rate falls to zero over the last `decay_share` of the steps.
    """
    lm = reading_model(run)
    saved = time.monotonic()
    while run.step < num_steps:
        started = time.monotonic()
        phase = phase_at(run.recipe.continual, run.step)
        if stage == "control" or run.step % run.recipe.plain_every == run.recipe.plain_every - 1:
            losses, ids_BT = _plain_step(run, phase)
        else:
            batch = memory_batch(run, phase, f"{run.recipe.seed} memory {run.step}")
            losses, ids_BT = memory_losses(run, lm, configured(lm, phase.slots), batch), batch.ids_BT
        losses.total.backward()
        clip_grad_norm_(run.model.parameters(), run.recipe.clip_norm)
        run.optimizer.step(run.recipe.continual_lr * _rate(run, num_steps))
        finish_step(run, stage, losses, ids_BT, time.monotonic() - started)
        if run.step % run.eval_every == 0:
            run.log({"step": run.step, "stage": stage, "slots": phase.slots, **evaluate_memory(run, lm, phase.slots)})
        if time.monotonic() - saved > run.save_seconds:
            save(run, stage)
            saved = time.monotonic()
    save(run, stage)


def reading_model(run: Run) -> LM:
    """The run's model with the seam that reads memory, proven with its own attention, then given the fast one."""
    run.model.set_attn_implementation("sdpa")
    run.model.eval()
    lm = LM(run.model, run.encoder.tokenizer, "nano")
    use_fast_attention(run.model)
    run.model.train()
    return lm


def configured(lm: LM, slots: int | None) -> Memory3Config:
    return replace(paper(lm), kept_tokens=slots)


def _plain_step(run: Run, phase: Phase) -> tuple[Losses, Tensor]:
    plain = replace(phase, tokens=phase.plain_tokens or phase.tokens)
    batch = plain_batch(run.recipe.seed + 1, run.step, plain, run.corpora, run.encoder)
    return plain_losses(run, batch), batch.ids_BT


def _rate(run: Run, num_steps: int) -> float:
    """Rises over the first steps, falls to nearly zero over the last ones."""
    rise = (run.step + 1) / run.recipe.warmup_steps
    fall = (1.0 - run.step / num_steps) / run.recipe.decay_share
    return min(1.0, rise, max(0.02, fall))


@torch.no_grad()
def evaluate_memory(run: Run, lm: LM, slots: int | None, rows: int = 32) -> dict[str, float]:
    """Exact match on held-out facts read from 5 memories (as trained now, and with the paper's 8 tokens)."""
    run.model.eval()
    found = {}
    phase = Phase(0, rows, 224, (5, 5), 3)
    for kept in dict.fromkeys((slots, 8)):
        batch = memory_batch(run, phase, f"{run.recipe.seed} heldout", "heldout")
        index_N = targets(batch.kind_BT, 10**6)
        with torch.autocast("cpu", torch.bfloat16):
            logits_NV = read_memories(lm, configured(lm, kept), batch, index_N)
        token, whole = exact_answers(logits_NV, index_N, batch.ids_BT, batch.kind_BT)
        name = f"memory{'all' if kept is None else kept}"
        found |= {f"{name}_token": round(token, 3), f"{name}_exact": round(whole, 3)}
    found |= evaluate_plain(run, rows)
    run.model.train()
    return found
