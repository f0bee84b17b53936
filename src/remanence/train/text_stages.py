"""Running text as a task: sequences alone, or with the memories of their chunks' references (Memory³ §3.6, §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remanence.data.sequences import SequenceFolder
from remanence.lm.lm import LM
from remanence.methods.memory3.method import Memory3, Memory3Config
from remanence.train.loader import Loader
from remanence.train.loop import Run, Task
from remanence.train.model import cast, use_fast_attention
from remanence.train.parallel import mean
from remanence.train.recipes.sequences import SequenceRecipe
from remanence.train.schedule import rate_at
from remanence.train.sequences import Sequences, sequence_loss

EVAL_TOGETHER = 8
"""Sequences of one pass of an evaluation."""


@dataclass(kw_only=True)
class SequenceRun(Run):
    """A run on stored sequences; `kept`: those that only evaluations read. `has_start`: its weights were given."""

    recipe: SequenceRecipe
    model: Any
    tokenizer: Any
    device: torch.device
    stored: SequenceFolder
    kept: SequenceFolder | None = None
    has_start: bool = False


def memory_config(recipe: SequenceRecipe) -> Memory3Config:
    """How the recipe's memories are written and read."""
    memory = recipe.memory
    return Memory3Config(
        tuple(range(memory.num_layers(recipe.shape))),
        kept_tokens=memory.kept_tokens,
        reference_tokens=memory.reference_tokens,
        num_memories=memory.memories,
        chunk_tokens=memory.chunk_tokens,
        refresh_tokens=memory.chunk_tokens,
    )


def running_text(run: SequenceRun) -> Task:
    """The task of a recipe's stage: nats per token of sequences that read memory, or (`reads` False) do not."""
    recipe = run.recipe
    lm: LM = run.within(reading_model, run)
    method = Memory3(memory_config(recipe)) if recipe.reads else None
    loader = Loader(run.stored, recipe.rows // recipe.parts, recipe.seed, references=recipe.reads)

    def loss(number: int) -> tuple[Tensor, int]:
        batch = loader.batch(number).to(run.device)
        with cast(run.device, recipe):
            found = sequence_loss(lm, batch, method, writes=recipe.writes)
        run.count(loss_text=float(mean(found)))
        return found, batch.ids_BT.numel()

    def rate(step: int) -> float:
        return rate_at(recipe.schedule, step, recipe.num_steps, recipe.warmup_steps, recipe.decay_share)

    def evaluate(step: int) -> dict[str, float]:
        return evaluate_kept(run, lm, method)

    return Task(
        recipe.stage,
        loss,
        rate,
        evaluate,
        recipe.eval_every,
        evaluate,
        recipe=recipe,
        parts=recipe.parts,
        smaller=_smaller(recipe),
    )


def _smaller(recipe: SequenceRecipe) -> str:
    """More parts leave the step what it is, so they come first."""
    more = next((count for count in range(recipe.parts + 1, recipe.rows + 1) if recipe.rows % count == 0), None)
    return "rows or sequence_tokens" if more is None else f"the sequences of a part (--set parts={more}), or rows"


def reading_model(run: SequenceRun) -> LM:
    """The run's model with the seam that reads memory, proven with its own attention; on a CPU given the fast one."""
    run.model.set_attn_implementation("sdpa")
    run.model.eval()
    lm = LM(run.model, run.tokenizer, run.recipe.stage)
    if run.device.type == "cpu":
        use_fast_attention(run.model)
    run.model.train()
    return lm


@torch.no_grad()
def evaluate_kept(run: SequenceRun, lm: LM, method: Memory3 | None) -> dict[str, float]:
    """`loss_text_none`: nats per token of the first kept sequences; `loss_text_memory`: with memories of references.

    {} where none are kept. The references of kept text are of kept text, too.
    """
    if run.kept is None:
        return {}
    run.model.eval()
    lm.drop_constants()
    rows = run.kept.rows(range(min(run.recipe.eval_rows, len(run.kept))))
    ways = {"loss_text_none": None} if method is None else {"loss_text_none": None, "loss_text_memory": method}
    totals = dict.fromkeys(ways, 0.0)
    for first in range(0, len(rows), EVAL_TOGETHER):
        part = rows[first : first + EVAL_TOGETHER]
        ids_BT = torch.stack([torch.from_numpy(row.ids.astype("int64")) for row in part])
        batch = Sequences(ids_BT, [run.kept.reference_ids(row.references) for row in part]).to(run.device)
        for name, way in ways.items():
            with cast(run.device, run.recipe):
                totals[name] += float(mean(sequence_loss(lm, batch, way))) * len(part)
    run.model.train()
    return {name: round(total / len(rows), 4) for name, total in totals.items()}
