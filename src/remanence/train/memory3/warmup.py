"""The warm-up without memory: examples with their passages as text, and the evaluations of the stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remanence.train.core.loop import Run, Task
from remanence.train.core.losses import Losses, answer_losses, exact_answers, targets
from remanence.train.core.model import cast, compile_layers, logits_at, use_fast_attention
from remanence.train.core.schedule import phase_at, rate_at
from remanence.train.core.stages import sample_interval
from remanence.train.cost.flops import step_flops
from remanence.train.examples.batches import Batch, context_batch, heldout_batch, text_batch, text_examples
from remanence.train.examples.corpora import Corpora
from remanence.train.examples.mixture import Encoder, Example
from remanence.train.memory3.samples import sample_with_text
from remanence.train.recipes.nano import NanoRecipe

EVAL_ROWS = 32
"""Examples of an evaluation, and of one forward pass of a larger one."""
ENDS_ROWS = 512
"""Examples of running text before the first step and after the last: 32 are too few to compare two models."""


@dataclass(kw_only=True)
class NanoRun(Run):
    """A run that trains a whole model. `compiled`: the warm-up compiles its layers, which needs a C++ compiler."""

    recipe: NanoRecipe
    model: Any
    encoder: Encoder
    corpora: Corpora
    device: torch.device
    compiled: bool = False


def logits_without_memory(run: NanoRun, batch: Batch, index_N: Tensor) -> Tensor:
    """logits_NV at N of the flattened B·T positions, read without memory."""
    with cast(run.device, run.recipe):
        hidden_BTC = run.model.model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
        return logits_at(run.model, hidden_BTC.flatten(0, 1)[index_N])


def losses_without_memory(run: NanoRun, batch: Batch, shift: int = 0) -> Losses:
    """The losses of a batch, with logits at its targets only. `shift` moves the choice of text tokens."""
    batch = batch.to(run.device)
    index_N = targets(batch.kind_BT, run.recipe.text_stride, shift)
    return weighted_losses(run, logits_without_memory(run, batch, index_N), index_N, batch)


def weighted_losses(run: NanoRun, logits_NV: Tensor, index_N: Tensor, batch: Any) -> Losses:
    """`answer_losses` with the recipe's weights; `batch` has `ids_BT` and `kind_BT`."""
    weights = (run.recipe.text_weight, run.recipe.z_weight)
    return answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, *weights)


def warmup_task(run: NanoRun) -> Task:
    """The task of the warm-up. After its rise the learning rate is constant."""
    use_fast_attention(run.model)
    if run.compiled:
        compile_layers(run.model)
    run.model.train()
    phases = run.recipe.warmup

    def is_text(step: int) -> bool:
        return phase_at(phases, step - 1)[1].books == 1

    def loss(number: int) -> tuple[Tensor, int]:
        batch = context_batch(run.recipe.seed, number, phase_at(phases, number)[1], run.corpora, run.encoder)
        count_flops(run, batch, number)
        return count_losses(run, losses_without_memory(run, batch, number)), batch.ids_BT.numel()

    def rate(step: int) -> float:
        return rate_at("constant", step, 1, run.recipe.warmup_steps, 1.0)

    def evaluate(step: int) -> dict[str, float]:
        return evaluate_text(run) if is_text(step) else evaluate_context(run)

    def ends(step: int) -> dict[str, float]:
        losses = evaluate_text(run, ENDS_ROWS) if step and is_text(step) else {}
        return {f"{name}_{ENDS_ROWS}": loss for name, loss in losses.items()}

    def sample(step: int) -> dict[str, Any]:
        return {} if is_text(step) else sample_with_text(run.model, run.encoder, run.recipe)

    every = sample_interval(run.recipe)
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


def count_losses(run: NanoRun, losses: Losses) -> Tensor:
    """The loss to minimise. Its parts are counted for the log."""
    run.count(loss_answer=float(losses.answer), loss_text=float(losses.text))
    return losses.total


def count_flops(run: NanoRun, batch: Any, shift: int, **options: Any) -> None:
    """Counts the FLOPs of a step over this process's examples; `options`: those of `step_flops`."""
    (rows, T), index_N = batch.ids_BT.shape, targets(batch.kind_BT, run.recipe.text_stride, shift)
    run.count(flops=step_flops(run.recipe.shape, rows, T, len(index_N), **options))


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def evaluate_context(run: NanoRun, rows: int = EVAL_ROWS) -> dict[str, float]:
    """Exact match on held-out facts with the passages as text: one short passage, and five passages."""
    figures = {}
    run.model.eval()
    for passages, facts, tokens in ((1, 2, 160), (5, 3, 384)):
        batch = heldout_batch(run.recipe.seed, rows, tokens, passages, facts, run.encoder).to(run.device)
        index_N = targets(batch.kind_BT, 10**6)
        logits_NV = logits_without_memory(run, batch, index_N)
        token, whole = exact_answers(logits_NV, index_N, batch.ids_BT, batch.kind_BT)
        figures |= {f"heldout{passages}_token": round(token, 3), f"heldout{passages}_exact": round(whole, 3)}
    run.model.train()
    return figures


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def evaluate_text(run: NanoRun, rows: int = EVAL_ROWS) -> dict[str, float]:
    """`loss_text_none`: nats per token of running text from held-out books, read without memory."""

    def read(part: list[Example]) -> tuple[Tensor, Batch]:
        batch = text_batch(part, run.encoder).to(run.device)
        return logits_without_memory(run, batch, targets(batch.kind_BT, 1)), batch

    return mean_text_loss(run, rows, "loss_text_none", read)


def mean_text_loss(
    run: NanoRun, num_examples: int, name: str, read: Callable[[list[Example]], tuple[Tensor, Any]]
) -> dict[str, float]:
    """`name`: the mean loss over all tokens of examples from held-out books; {} if there are no such books.

    `read(examples)`: logits_NV of all their tokens, and their batch.
    """
    if not run.corpora.heldout_paragraphs:
        return {}
    run.model.eval()
    examples, total, count = text_examples(run.recipe.seed, num_examples, run.corpora), 0.0, 0
    for first in range(0, num_examples, EVAL_ROWS):
        logits_NV, batch = read(examples[first : first + EVAL_ROWS])
        index_N = targets(batch.kind_BT, 1)
        losses = answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, 1.0)
        total, count = total + float(losses.text) * len(index_N), count + len(index_N)
    run.model.train()
    return {name: round(total / count, 4)}
