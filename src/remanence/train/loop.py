"""The training loop: steps of one task, its log, evaluations and checkpoints, and the way back after a divergence."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remanence.errors import InputError
from remanence.train import checkpoint, parallel
from remanence.train.guard import GuardConfig, Watched, judge
from remanence.train.optimizer import Optimizer
from remanence.train.recipes.override import leaves


@dataclass
class Run:
    """Where a training run stands: its folder, what it trains, and how far it has come.

    `within` calls what needs the model: of many processes, with the parameters gathered (`parallel.Sharded`). `data`:
    the folder that its texts are from. `sinks` are told every record of the log, `stepped` every step, with the stage
    and how many steps it has. `peak_flops`: what this process's device can do in a second, where that is known.

    `skipped`: batches that were left out, so that step N reads batch N + `skipped`; `rate` multiplies every learning
    rate, and is lowered where the run had to go back. `spikes`: steps whose loss was high, or no number. `settled`:
    calm steps since the last checkpoint.
    """

    folder: Path
    optimizer: Optimizer
    guard: GuardConfig
    within: Callable[..., Any] = parallel.call
    data: Path | None = None
    sinks: tuple[checkpoint.Sink, ...] = (checkpoint.show,)
    stepped: Callable[[Run, str, int], None] = lambda run, stage, num_steps: None
    peak_flops: float | None = None
    log_every: int = 25
    save_seconds: float = 180.0
    step: int = 0
    skipped: int = 0
    rewinds: int = 0
    spikes: int = 0
    rate: float = 1.0
    seconds: float = 0.0
    tokens: int = 0
    watched: Watched = field(default_factory=Watched)
    settled: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The batch that the next step reads."""
        return self.step + self.skipped

    def log(self, record: dict[str, Any]) -> None:
        checkpoint.log(self.folder, record, self.sinks)

    def count(self, **amounts: float) -> None:
        """Amounts whose means the next line of the log shows."""
        for name, amount in amounts.items():
            total, times = self.sums.get(name, 0.0), self.sums.get(f"#{name}", 0.0)
            self.sums[name], self.sums[f"#{name}"] = total + float(amount), times + 1


def nothing(step: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Task:
    """What a stage trains, as functions.

    `loss(batch number)`: a scalar to minimise, and the tokens it was made of. With `parts` a step is that many batches
    in a row, whose gradients are averaged: step N takes those from N * `parts` on. `rate(step)` multiplies the learning
    rates. `evaluate(step)`: figures for the log, every `eval_every` steps; `ends(step)` before the first step and
    after the last; `sample(step)`: answers to look at, every `sample_every` steps (0: none). None of these changes what
    is trained, nor draws from torch's generator. `state` and `restore`: tensors beside weights and optimizer that the
    next step depends on, and values that JSON can hold. `recipe`: what the run is made by; a checkpoint of another is
    not gone on from.
    `smaller`: what to lower where a step does not fit the accelerator's memory.
    """

    stage: str
    loss: Callable[[int], tuple[Tensor, int]]
    rate: Callable[[int], float]
    evaluate: Callable[[int], dict[str, Any]] = nothing
    eval_every: int = 200
    ends: Callable[[int], dict[str, Any]] = nothing
    _: KW_ONLY
    sample: Callable[[int], dict[str, Any]] = nothing
    sample_every: int = 0
    recipe: Any = None
    parts: int = 1
    state: Callable[[], tuple[dict[str, Tensor], Any]] = lambda: ({}, None)
    restore: Callable[[Mapping[str, Tensor], Any], None] = lambda tensors, values: None
    smaller: str = "the phase's rows or tokens (--set warmup.0.rows=8)"


def train(run: Run, task: Task, num_steps: int) -> None:
    """Until step `num_steps`; a run that cannot be kept from diverging stops with its last good checkpoint."""
    if run.step == 0:
        _log_figures(run, task, run.within(task.ends, 0))
        checkpoint.clear(run.folder / task.stage)
        save(run, task)
    saved = time.monotonic()
    while run.step < num_steps:
        begun = time.monotonic()
        if reason := _step(run, task):
            _go_back(run, task, reason)
            continue
        run.step, run.seconds = run.step + 1, run.seconds + time.monotonic() - begun
        run.count(seconds=time.monotonic() - begun)
        run.stepped(run, task.stage, num_steps)
        if run.step % run.log_every == 0:
            _log_means(run, task)
        if run.step % task.eval_every == 0:
            _log_figures(run, task, run.within(task.evaluate, run.step))
        if task.sample_every and run.step % task.sample_every == 0:
            _log_figures(run, task, run.within(task.sample, run.step))
        if run.watched.is_calm and parallel.decided(time.monotonic() - saved > run.save_seconds):
            save(run, task)
            saved = time.monotonic()
    if "tokens" in run.sums:  # a last line, of fewer steps than the others
        _log_means(run, task)
    save(run, task)
    _log_figures(run, task, run.within(task.ends, run.step))


def _step(run: Run, task: Task) -> str | None:
    """One step forward, or the reason why it was not made."""
    try:
        loss, num_tokens = _gradients(run, task)
    except torch.OutOfMemoryError as error:
        problem = f"step {run.step} of {task.stage} does not fit into the accelerator's memory"
        raise InputError(problem, f"lower {task.smaller}, and --resume") from error
    norm = run.optimizer.clip()
    run.watched, reason = judge(run.guard, run.watched, float(parallel.mean(loss)), norm)
    run.spikes += bool(reason) or not run.watched.is_calm
    if reason:
        return reason
    run.settled += run.watched.is_calm
    run.optimizer.step(task.rate(run.step) * run.rate)
    num_tokens = round(float(parallel.mean(torch.tensor(float(num_tokens)))) * parallel.size())
    run.tokens += num_tokens
    run.count(tokens=num_tokens, norm=norm)
    return None


def _gradients(run: Run, task: Task) -> tuple[Tensor, int]:
    """The mean loss of the parts of a step, and their tokens; gradients are added up in float32."""
    losses, num_tokens = [], 0
    for part in range(task.parts):
        loss, tokens = run.within(task.loss, run.number * task.parts + part)
        (loss / task.parts).backward()
        losses.append(loss.detach())
        num_tokens += tokens
        if part + 1 < task.parts:
            run.optimizer.collect()
    return torch.stack(losses).mean() if task.parts > 1 else losses[0], num_tokens


def _go_back(run: Run, task: Task, reason: str) -> None:
    """To the last good checkpoint; what was read since is left out from now on.

    A checkpoint is good when calm steps have followed it: the step before it may be what the weights did not survive.
    """
    at, last, spikes = run.step, run.number, run.spikes
    rewinds, rate = run.rewinds + 1, run.rate * run.guard.lower
    run.optimizer.drop_gradients()
    if rewinds > run.guard.rewinds:
        raise InputError(
            f"{task.stage} diverged {rewinds} times, last at step {at}: {reason}",
            f"lower the learning rate; what was saved is in {str(run.folder / task.stage)!r} and beside it",
        )
    if run.settled < run.guard.patience:
        checkpoint.drop_newest(run.folder / task.stage)
    resume(run, task)
    record = {"went_back_to": run.step, "left_out": [run.number, last], "reason": reason, "rate": rate}
    run.skipped, run.rewinds, run.rate, run.spikes = last + 1 - run.step, rewinds, rate, spikes
    run.log({"step": at, "stage": task.stage, **record})
    save(run, task)  # a kill now goes on from here, and leaves out the same


def _log_means(run: Run, task: Task) -> None:
    """Means since the last line; a name that was counted more rarely is a mean over those times.

    `tflops_per_second` and `mfu` (its share of the peak) are each process's own.
    """
    sums, run.sums = run.sums, {}
    seconds, tokens, flops = (sums.pop(name, 0.0) for name in ("seconds", "tokens", "flops"))
    speed: dict[str, float] = {"tokens_per_second": round(tokens / max(1e-9, seconds)), "spikes": run.spikes}
    if flops:
        speed["tflops_per_second"] = round(flops / max(1e-9, seconds) / 1e12, 4)
    if flops and run.peak_flops:
        speed["mfu"] = round(flops / max(1e-9, seconds) / run.peak_flops, 4)
    means = {k: round(v / sums[f"#{k}"], 4) for k, v in sums.items() if f"#{k}" in sums and k[0] != "#"}
    told = {"step": run.step, "stage": task.stage, "seconds": round(run.seconds), "tokens": run.tokens}
    run.log({**told, **means, **speed})


def _log_figures(run: Run, task: Task, figures: dict[str, Any]) -> None:
    if figures:
        run.log({"step": run.step, "stage": task.stage, **figures})


_PROGRESS = ("step", "skipped", "rewinds", "spikes", "rate", "seconds", "tokens", "sums")


def save(run: Run, task: Task) -> None:
    """Everything that the next step depends on, so that a run which goes on is the run that was never stopped."""
    tensors, values = task.state()
    tensors = {**tensors, "random": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    progress = {name: getattr(run, name) for name in _PROGRESS}
    watched = {"calm": run.watched.calm, "high": run.watched.high}
    kept = checkpoint.Checkpoint(
        dict(run.optimizer.masters),
        run.optimizer.state(),
        {"stage": task.stage, **progress, "watched": watched, "values": values, "recipe": _fields(task)},
        tensors,
    )
    checkpoint.save(run.folder / task.stage, kept)
    run.settled = 0


def load_weights(run: Run, stage: str) -> checkpoint.Checkpoint:
    """The weights that a stage ended with, without its optimizer and its count of steps."""
    found = checkpoint.load(run.folder / stage, run.optimizer.masters)
    run.optimizer.load_weights(found.weights)
    return found


def resume(run: Run, task: Task) -> None:
    """Continues where the checkpoint of the task's stage stood."""
    found = checkpoint.load(run.folder / task.stage, run.optimizer.masters)
    _compare(run, task, found.progress["recipe"])
    run.optimizer.load_weights(found.weights)
    run.optimizer.load(found.optimizer)
    for name in _PROGRESS:
        setattr(run, name, found.progress.get(name, getattr(run, name)))  # an older one knows fewer
    watched = found.progress["watched"]
    run.watched = Watched(tuple(watched["calm"]), watched["high"])
    torch.set_rng_state(found.tensors["random"])
    if torch.cuda.is_available() and "random_cuda" in found.tensors:
        torch.cuda.set_rng_state(found.tensors["random_cuda"])
    task.restore(found.tensors, found.progress["values"])


MODEL_FIELDS = ("shape.", "lora.", "method.", "base", "dtype", "matrix_rule")
"""Fields of a recipe that weights and optimizer are made by: with others a checkpoint cannot go on."""


def _fields(task: Task) -> dict[str, Any]:
    return {} if task.recipe is None else json.loads(json.dumps(leaves(asdict(task.recipe))))


def _compare(run: Run, task: Task, kept: dict[str, Any]) -> None:
    """Other fields may be changed on the way, and the log says so."""
    now = _fields(task)
    changed = {name: [kept.get(name), now.get(name)] for name in {**kept, **now} if kept.get(name) != now.get(name)}
    for name, (before, wanted) in changed.items():
        if name.startswith(MODEL_FIELDS) and name in kept:  # a field that is newer than it changes no weights
            raise InputError(
                f"the checkpoint in {str(run.folder / task.stage)!r} is of another recipe: {name} is {before}",
                f"set {name} so instead of {wanted}, or give another --out",
            )
    if changed:
        run.log({"step": run.step, "stage": task.stage, "changed": changed})
