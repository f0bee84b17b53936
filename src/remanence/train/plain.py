"""Stage one, the warm-up without memory: whole rows with their passages as text, and its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remanence.train.batches import Batch, heldout_batch, plain_batch, text_batch, text_rows
from remanence.train.corpora import Corpora
from remanence.train.cost import step_flops
from remanence.train.loop import Run, Task
from remanence.train.losses import Losses, answer_losses, exact_answers, targets
from remanence.train.model import cast, compile_layers, logits_at, use_fast_attention
from remanence.train.recipes.nano import Phase, Recipe
from remanence.train.row import Row
from remanence.train.rows import Encoder
from remanence.train.samples import from_text, samples_every
from remanence.train.schedule import rate_at

EVAL_ROWS = 32
"""Of an evaluation, and of one pass of a larger one."""
ENDS_ROWS = 512
"""Of running text, before the first step and after the last: 32 tell curves of one model, not two models apart."""


@dataclass(kw_only=True)
class ModelRun(Run):
    """A run that trains a whole model.

    `compiled`: the warm-up runs compiled layers, which needs a C++ compiler. `has_start`: its weights were given,
    so a later stage need not begin with those of the warm-up.
    """

    recipe: Recipe
    model: Any
    encoder: Encoder
    corpora: Corpora
    device: torch.device
    compiled: bool = False
    has_start: bool = False


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that a step belongs to; the last one goes on."""
    for phase in phases:
        if step < phase.num_steps:
            return phase
        step -= phase.num_steps
    return phases[-1]


def weights_of(recipe: Recipe) -> tuple[float, float]:
    """Of text, and of the z-loss."""
    return recipe.text_weight, recipe.z_weight


def plain_logits(run: ModelRun, batch: Batch, index_N: Tensor) -> Tensor:
    """logits_NV at chosen positions of whole rows, read without memory."""
    with cast(run.device, run.recipe):
        hidden_BTC = run.model.model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
        return logits_at(run.model, hidden_BTC.flatten(0, 1)[index_N])


def plain_losses(run: ModelRun, batch: Batch, shift: int = 0) -> Losses:
    """Forward pass over whole rows, logits only where there is a target; `shift` of the sample of text tokens."""
    batch = batch.to(run.device)
    index_N = targets(batch.kind_BT, run.recipe.text_stride, shift)
    logits_NV = plain_logits(run, batch, index_N)
    return answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, *weights_of(run.recipe))


def warm_up(run: ModelRun) -> Task:
    """The task of the warm-up; its rate stays where it has risen to."""
    use_fast_attention(run.model)
    if run.compiled:
        compile_layers(run.model)
    run.model.train()

    def loss(number: int) -> tuple[Tensor, int]:
        phase = phase_at(run.recipe.warmup, number)
        batch = plain_batch(run.recipe.seed, number, phase, run.corpora, run.encoder)
        count_flops(run, batch, number)
        return counted(run, plain_losses(run, batch, number)), batch.ids_BT.numel()

    def rate(step: int) -> float:
        return rate_at("constant", step, 1, run.recipe.warmup_steps, 1.0)

    def evaluate(step: int) -> dict[str, float]:
        return evaluate_text(run) if phase_at(run.recipe.warmup, step - 1).books == 1 else evaluate_plain(run)

    def ends(step: int) -> dict[str, float]:
        is_text = step and phase_at(run.recipe.warmup, step - 1).books == 1
        found = evaluate_text(run, ENDS_ROWS) if is_text else {}
        return {f"{name}_{ENDS_ROWS}": loss for name, loss in found.items()}

    def sample(step: int) -> dict[str, Any]:
        return {} if phase_at(run.recipe.warmup, step - 1).books == 1 else from_text(run)

    every = samples_every(run.recipe)
    return Task(
        "warmup",
        loss,
        rate,
        evaluate,
        run.recipe.eval_every,
        ends,
        sample=sample,
        sample_every=every,
        recipe=run.recipe,
    )


def counted(run: ModelRun, losses: Losses) -> Tensor:
    """The loss to minimise; its parts are for the log."""
    run.count(loss_answer=float(losses.answer), loss_text=float(losses.text))
    return losses.total


def count_flops(run: ModelRun, batch: Any, shift: int, **how: Any) -> None:
    """Of a step over this process's rows (`Batch` or `MemoryBatch`); `how`: see `step_flops`."""
    (rows, T), index_N = batch.ids_BT.shape, targets(batch.kind_BT, run.recipe.text_stride, shift)
    run.count(flops=step_flops(run.recipe.shape, rows, T, len(index_N), **how))


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def evaluate_plain(run: ModelRun, rows: int = EVAL_ROWS) -> dict[str, float]:
    """Exact match on held-out facts with the passages as text: 1 short passage, and 5 passages."""
    found = {}
    run.model.eval()
    for passages, facts, tokens in ((1, 2, 160), (5, 3, 384)):
        batch = heldout_batch(run.recipe.seed, rows, tokens, passages, facts, run.encoder).to(run.device)
        index_N = targets(batch.kind_BT, 10**6)
        logits_NV = plain_logits(run, batch, index_N)
        token, whole = exact_answers(logits_NV, index_N, batch.ids_BT, batch.kind_BT)
        found |= {f"heldout{passages}_token": round(token, 3), f"heldout{passages}_exact": round(whole, 3)}
    run.model.train()
    return found


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def evaluate_text(run: ModelRun, rows: int = EVAL_ROWS) -> dict[str, float]:
    """`loss_text_none`: nats per token of running text from books that are kept for evaluation, read by itself."""

    def read(part: list[Row]) -> tuple[Tensor, Batch]:
        batch = text_batch(part, run.encoder).to(run.device)
        return plain_logits(run, batch, targets(batch.kind_BT, 1)), batch

    return mean_text_loss(run, rows, "loss_text_none", read)


def mean_text_loss(
    run: ModelRun, num_rows: int, name: str, read: Callable[[list[Row]], tuple[Tensor, Any]]
) -> dict[str, float]:
    """`name`: the mean over all tokens of rows of kept books; {} where there are no such books.

    `read` gives logits_NV of all tokens of a part, and its batch.
    """
    if not run.corpora.kept_paragraphs:
        return {}
    run.model.eval()
    rows, total, count = text_rows(run.recipe.seed, num_rows, run.corpora), 0.0, 0
    for first in range(0, num_rows, EVAL_ROWS):
        logits_NV, batch = read(rows[first : first + EVAL_ROWS])
        index_N = targets(batch.kind_BT, 1)
        losses = answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, 1.0)
        total, count = total + float(losses.text) * len(index_N), count + len(index_N)
    run.model.train()
    return {name: round(total / count, 4)}
