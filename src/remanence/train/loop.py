"""Stage one, the warm-up without memory: the training loop, its log, its evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remanence.train import checkpoint
from remanence.train.batches import Batch, heldout_batch, plain_batch, text_batch, text_rows
from remanence.train.corpora import Corpora
from remanence.train.losses import Losses, answer_losses, exact_answers, targets
from remanence.train.model import compile_layers, logits_at, use_fast_attention
from remanence.train.optimizer import Optimizer
from remanence.train.recipes.nano import Phase, Recipe
from remanence.train.row import Row
from remanence.train.rows import Encoder

EVAL_ROWS = 32
"""Of an evaluation, and of one pass of a larger one."""


@dataclass
class Run:
    """A training run: the model, where it stands, and the folder that it writes to.

    `compiled`: the warm-up runs compiled layers, which needs a C++ compiler. `has_start`: its weights were given,
    so a later stage need not begin with those of the warm-up.
    """

    recipe: Recipe
    model: Any
    optimizer: Optimizer
    encoder: Encoder
    corpora: Corpora
    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compiled: bool = False
    has_start: bool = False
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    log_every: int = 25
    save_seconds: float = 180.0
    sums: dict[str, float] = field(default_factory=dict)

    def log(self, record: dict[str, Any]) -> None:
        checkpoint.log(self.folder, record)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that a step belongs to; the last one goes on."""
    for phase in phases:
        if step < phase.num_steps:
            return phase
        step -= phase.num_steps
    return phases[-1]


def plain_logits(run: Run, batch: Batch, index_N: Tensor) -> Tensor:
    """logits_NV at chosen positions of whole rows, read without memory."""
    with torch.autocast(run.device.type, torch.bfloat16):
        hidden_BTC = run.model.model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
        return logits_at(run.model, hidden_BTC.flatten(0, 1)[index_N])


def plain_losses(run: Run, batch: Batch) -> Losses:
    """Forward pass over whole rows, logits only where there is a target."""
    batch = batch.to(run.device)
    index_N = targets(batch.kind_BT, run.recipe.text_stride, run.step)
    logits_NV = plain_logits(run, batch, index_N)
    return answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, run.recipe.text_weight)


def warm_up(run: Run, num_steps: int) -> None:
    """Trains until step `num_steps`; logs, evaluates and saves on the way and at the end."""
    use_fast_attention(run.model)
    if run.compiled:
        compile_layers(run.model)
    run.model.train()
    saved = time.monotonic()
    while run.step < num_steps:
        started = time.monotonic()
        phase = phase_at(run.recipe.warmup, run.step)
        batch = plain_batch(run.recipe.seed, run.step, phase, run.corpora, run.encoder)
        losses = plain_losses(run, batch)
        losses.total.backward()
        run.optimizer.step(min(1.0, (run.step + 1) / run.recipe.warmup_steps))
        finish_step(run, "warmup", losses, batch.ids_BT, time.monotonic() - started)
        if run.step % run.recipe.eval_every == 0:
            found = evaluate_text(run) if phase.books == 1 else evaluate_plain(run)
            run.log({"step": run.step, "stage": "warmup", **found})
        if time.monotonic() - saved > run.save_seconds:
            save(run, "warmup")
            saved = time.monotonic()
    save(run, "warmup")


def finish_step(run: Run, stage: str, losses: Losses, ids_BT: Tensor, seconds: float) -> None:
    """Counts the step and writes a line of means every `log_every` steps."""
    run.step += 1
    run.seconds += seconds
    run.tokens += ids_BT.numel()
    amounts = {"answer": losses.answer, "text": losses.text, "tokens": ids_BT.numel(), "seconds": seconds, "steps": 1}
    for name, amount in amounts.items():
        run.sums[name] = run.sums.get(name, 0.0) + float(amount)
    if run.step % run.log_every == 0:
        named = [name for name in ("answer", "text", "hints") if name in run.sums]
        means = {f"loss_{name}": round(run.sums[name] / run.sums["steps"], 4) for name in named}
        speed = round(run.sums["tokens"] / run.sums["seconds"])
        run.log({"step": run.step, "stage": stage, "seconds": round(run.seconds), **means, "tokens_per_second": speed})
        run.sums.clear()


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def evaluate_plain(run: Run, rows: int = EVAL_ROWS) -> dict[str, float]:
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
def evaluate_text(run: Run, rows: int = EVAL_ROWS) -> dict[str, float]:
    """`loss_text_none`: nats per token of running text from books that are kept for evaluation, read by itself."""

    def read(part: list[Row]) -> tuple[Tensor, Batch]:
        batch = text_batch(part, run.encoder).to(run.device)
        return plain_logits(run, batch, targets(batch.kind_BT, 1)), batch

    return mean_text_loss(run, rows, "loss_text_none", read)


def mean_text_loss(
    run: Run, num_rows: int, name: str, read: Callable[[list[Row]], tuple[Tensor, Any]]
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


def save(run: Run, stage: str) -> None:
    weights = dict(run.optimizer.masters)
    progress = {"stage": stage, "step": run.step, "seconds": run.seconds, "tokens": run.tokens}
    checkpoint.save(run.folder / stage, checkpoint.Checkpoint(weights, run.optimizer.state(), progress))


def load_weights(run: Run, stage: str) -> checkpoint.Checkpoint:
    """The weights that a stage ended with, without its optimizer and its count of steps."""
    found = checkpoint.load(run.folder / stage)
    for name, master in run.optimizer.masters.items():
        master.copy_(found.weights[name])
    run.optimizer.copy_to_model()
    return found


def resume(run: Run, stage: str) -> None:
    """Continues where the checkpoint of `stage` stood."""
    found = load_weights(run, stage)
    run.optimizer.load(found.optimizer)
    run.step, run.seconds, run.tokens = (found.progress[name] for name in ("step", "seconds", "tokens"))
