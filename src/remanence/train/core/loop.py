"""The training loop: the steps of one task, its log, evaluations and checkpoints, and the return after a divergence."""

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
from remanence.train.core import checkpoint, parallel
from remanence.train.core.divergence import GuardConfig, LossHistory, judge
from remanence.train.core.fields import leaves
from remanence.train.core.optimizer import Optimizer


@dataclass
class Run:
    """The state of a training run: its folder, what it trains, and how far it is.

    - `call_with_params(function, *arguments)`: calls what needs the model's parameters. With several processes they
      are gathered for the call (`parallel.Sharded`).
    - `data_files`: the data files that are read, by name, and their sizes in bytes.
    - `log_sinks`: receive every record of the log.
    - `on_step(run, stage, num_steps)`: called after every step.
    - `peak_flops`: peak FLOPs per second of this process's device; None if unknown.
    - `has_start`: the weights were given by the user, so a later stage does not load those of an earlier one.
    - `log_every` (steps), `save_seconds`: how often means are logged and checkpoints are written.
    - `skipped`: the number of batches that were left out; step N reads batch N + `skipped`.
    - `rate`: multiplies every learning rate; it is lowered at every return after a divergence (`rewinds` of them).
    - `spikes`: the number of steps whose loss was high or not finite. `settled`: calm steps since the last checkpoint.
    - `seconds`, `tokens`: totals of the stage. `sums`: totals for the next line of the log.
    """

    folder: Path
    optimizer: Optimizer
    guard: GuardConfig
    _: KW_ONLY
    call_with_params: Callable[..., Any] = parallel.call
    data_files: Mapping[str, int] = field(default_factory=dict)
    log_sinks: tuple[checkpoint.LogSink, ...] = (checkpoint.print_record,)
    on_step: Callable[[Run, str, int], None] = lambda run, stage, num_steps: None
    peak_flops: float | None = None
    has_start: bool = False
    log_every: int = 25
    save_seconds: float = 180.0
    step: int = 0
    skipped: int = 0
    rewinds: int = 0
    spikes: int = 0
    rate: float = 1.0
    seconds: float = 0.0
    tokens: int = 0
    history: LossHistory = field(default_factory=LossHistory)
    settled: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The number of the batch that the next step reads."""
        return self.step + self.skipped

    def log(self, record: dict[str, Any]) -> None:
        checkpoint.log(self.folder, record, self.log_sinks)

    def count(self, **amounts: float) -> None:
        """Adds amounts whose means appear in the next line of the log."""
        for name, amount in amounts.items():
            total, times = self.sums.get(name, 0.0), self.sums.get(f"#{name}", 0.0)
            self.sums[name], self.sums[f"#{name}"] = total + float(amount), times + 1


def nothing(step: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Task:
    """What a stage trains, as functions.

    - `loss(batch_number)`: (scalar loss, number of tokens). With `parts` a step consists of that many batches, from
      number N * `parts` on; their gradients are averaged.
    - `rate(step)`: multiplies the learning rates.
    - `evaluate(step)`: figures for the log, every `eval_every` steps.
    - `ends(step)`: figures before the first step and after the last.
    - `sample(step)`: example answers for the log, every `sample_every` steps (0: never).
    - `state()`: tensors, and values that JSON can hold, that the next step needs beside weights and optimizer;
      `restore(tensors, values)` sets them.
    - `recipe`: the dataclass that the run is made from. A checkpoint of another recipe is refused.
    - `oom_hint`: what the user should lower if a step does not fit into the accelerator's memory.

    `evaluate`, `ends` and `sample` must not change what is trained, nor use torch's global generator.
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
    oom_hint: str = "the phase's rows or tokens (--set warmup.0.rows=8)"


def train(run: Run, task: Task, num_steps: int) -> None:
    """Trains until step `num_steps`. InputError if the run diverges too often; its last good checkpoint stays."""
    if run.step == 0:
        _log_figures(run, task, run.call_with_params(task.ends, 0))
        checkpoint.clear(run.folder / task.stage)
        save(run, task)
    last_save = time.monotonic()
    while run.step < num_steps:
        start = time.monotonic()
        if reason := _step(run, task):
            _go_back(run, task, reason)
            continue
        run.step, run.seconds = run.step + 1, run.seconds + time.monotonic() - start
        run.count(seconds=time.monotonic() - start)
        run.on_step(run, task.stage, num_steps)
        if run.step % run.log_every == 0:
            _log_means(run, task)
        if run.step % task.eval_every == 0:
            _log_figures(run, task, run.call_with_params(task.evaluate, run.step))
        if task.sample_every and run.step % task.sample_every == 0:
            _log_figures(run, task, run.call_with_params(task.sample, run.step))
        if run.history.is_calm and parallel.decided(time.monotonic() - last_save > run.save_seconds):
            save(run, task)
            last_save = time.monotonic()
    if "tokens" in run.sums:  # a last line, of fewer steps than the others
        _log_means(run, task)
    save(run, task)
    _log_figures(run, task, run.call_with_params(task.ends, run.step))


def _step(run: Run, task: Task) -> str | None:
    """One step; if the run has diverged, the reason, and no weight is changed."""
    try:
        loss, num_tokens = _gradients(run, task)
    except torch.OutOfMemoryError as error:
        problem = f"step {run.step} of {task.stage} does not fit into the accelerator's memory"
        raise InputError(problem, f"lower {task.oom_hint}, and use --resume") from error
    norm = run.optimizer.clip()
    run.history, reason = judge(run.guard, run.history, float(parallel.mean(loss)), norm)
    run.spikes += bool(reason) or not run.history.is_calm
    if reason:
        return reason
    run.settled += run.history.is_calm
    run.optimizer.step(task.rate(run.step) * run.rate)
    num_tokens = round(float(parallel.mean(torch.tensor(float(num_tokens)))) * parallel.size())
    run.tokens += num_tokens
    run.count(tokens=num_tokens, norm=norm)
    return None


def _gradients(run: Run, task: Task) -> tuple[Tensor, int]:
    """(mean loss of the parts of a step, their number of tokens); gradients are added up in float32."""
    losses, num_tokens = [], 0
    for part in range(task.parts):
        loss, tokens = run.call_with_params(task.loss, run.number * task.parts + part)
        (loss / task.parts).backward()
        losses.append(loss.detach())
        num_tokens += tokens
        if part + 1 < task.parts:
            run.optimizer.collect()
    return torch.stack(losses).mean() if task.parts > 1 else losses[0], num_tokens


def _go_back(run: Run, task: Task, reason: str) -> None:
    """Returns to the last good checkpoint; the batches that were read since then are skipped from now on.

    A checkpoint is good if calm steps have followed it: the step before it may have damaged the weights.
    """
    at, last, spikes = run.step, run.number, run.spikes
    rewinds, rate = run.rewinds + 1, run.rate * run.guard.lower
    run.optimizer.drop_gradients()
    if rewinds > run.guard.rewinds:
        raise InputError(
            f"{task.stage} diverged {rewinds} times, last at step {at}: {reason}",
            f"lower the learning rate; the checkpoints are in {str(run.folder / task.stage)!r} and beside it",
        )
    if run.settled < run.guard.patience:
        checkpoint.drop_newest(run.folder / task.stage)
    resume(run, task)
    record = {"went_back_to": run.step, "left_out": [run.number, last], "reason": reason, "rate": rate}
    run.skipped, run.rewinds, run.rate, run.spikes = last + 1 - run.step, rewinds, rate, spikes
    run.log({"step": at, "stage": task.stage, **record})
    save(run, task)  # a run that is killed now continues from here and skips the same batches


def _log_means(run: Run, task: Task) -> None:
    """Logs the means since the last line, each over the times that it was counted.

    `tflops_per_second` and `mfu` (its share of the device's peak) are of each process alone.
    """
    sums, run.sums = run.sums, {}
    seconds, tokens, flops = (sums.pop(name, 0.0) for name in ("seconds", "tokens", "flops"))
    speed: dict[str, float] = {"tokens_per_second": round(tokens / max(1e-9, seconds)), "spikes": run.spikes}
    if flops:
        speed["tflops_per_second"] = round(flops / max(1e-9, seconds) / 1e12, 4)
    if flops and run.peak_flops:
        speed["mfu"] = round(flops / max(1e-9, seconds) / run.peak_flops, 4)
    means = {k: round(v / sums[f"#{k}"], 4) for k, v in sums.items() if f"#{k}" in sums and k[0] != "#"}
    totals = {"step": run.step, "stage": task.stage, "seconds": round(run.seconds), "tokens": run.tokens}
    run.log({**totals, **means, **speed})


def _log_figures(run: Run, task: Task, figures: dict[str, Any]) -> None:
    if figures:
        run.log({"step": run.step, "stage": task.stage, **figures})


_PROGRESS = ("step", "skipped", "rewinds", "spikes", "rate", "seconds", "tokens", "sums")


def save(run: Run, task: Task) -> None:
    """Writes everything that the next step depends on: a resumed run equals one that was never stopped, bit for bit.

    The name "watched" of the loss history is part of the format.
    """
    tensors, values = task.state()
    tensors = {**tensors, "random": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    progress = {name: getattr(run, name) for name in _PROGRESS}
    history = {"calm": run.history.calm, "high": run.history.high}
    state = checkpoint.Checkpoint(
        dict(run.optimizer.masters),
        run.optimizer.state(),
        {"stage": task.stage, **progress, "watched": history, "values": values, "recipe": _fields(task)},
        tensors,
    )
    checkpoint.save(run.folder / task.stage, state)
    run.settled = 0


def load_weights(run: Run, stage: str) -> checkpoint.Checkpoint:
    """Loads the weights of a stage's last checkpoint, without its optimizer and its step."""
    saved = checkpoint.load(run.folder / stage, run.optimizer.masters)
    run.optimizer.load_weights(saved.weights)
    return saved


def resume(run: Run, task: Task) -> None:
    """Continues from the last checkpoint of the task's stage."""
    saved = checkpoint.load(run.folder / task.stage, run.optimizer.masters)
    _check_recipe(run, task, saved.progress["recipe"])
    run.optimizer.load_weights(saved.weights)
    run.optimizer.load(saved.optimizer)
    for name in _PROGRESS:
        setattr(run, name, saved.progress.get(name, getattr(run, name)))  # older checkpoints have fewer fields
    history = saved.progress["watched"]
    run.history = LossHistory(tuple(history["calm"]), history["high"])
    torch.set_rng_state(saved.tensors["random"])
    if torch.cuda.is_available() and "random_cuda" in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors["random_cuda"])
    task.restore(saved.tensors, saved.progress["values"])


MODEL_FIELDS = ("shape.", "lora.", "method.", "base", "dtype", "matrix_rule")
"""Fields of a recipe that decide weights and optimizer: a checkpoint with other values cannot be continued."""


def _fields(task: Task) -> dict[str, Any]:
    return {} if task.recipe is None else json.loads(json.dumps(leaves(asdict(task.recipe))))


def _check_recipe(run: Run, task: Task, saved: dict[str, Any]) -> None:
    """InputError if a field of `MODEL_FIELDS` has changed since the checkpoint. Other changes are logged."""
    now = _fields(task)
    changed = {name: [saved.get(name), now.get(name)] for name in {**saved, **now} if saved.get(name) != now.get(name)}
    for name, (before, after) in changed.items():
        if name.startswith(MODEL_FIELDS) and name in saved:  # a field newer than the checkpoint changes no weights
            raise InputError(
                f"the checkpoint in {str(run.folder / task.stage)!r} belongs to another recipe: {name} is {before} "
                f"there and {after} here",
                f"use --set {name}={json.dumps(before)}, or another --out",
            )
    if changed:
        run.log({"step": run.step, "stage": task.stage, "changed": changed})
