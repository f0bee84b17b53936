"""The display of `remanence train`: a progress bar on a terminal, elsewhere the log as JSON lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remanence.cli.terminal import clean, out

if TYPE_CHECKING:
    from remanence.train.core.loop import Run

HIDDEN = ("step", "stage", "samples")


@dataclass(frozen=True)
class Display:
    """`on_record` receives every record of the log; `on_step`, as in `Run`, every step."""

    on_record: Callable[[dict[str, Any]], None]
    on_step: Callable[[Run, str, int], None]


@contextmanager
def watching(folder: Path, with_tensorboard: bool) -> Iterator[Callable[[Run], None]]:
    """A function that connects a run to the display, and if wanted to TensorBoard, while the block runs."""
    from remanence.train.core.tensorboard import tensorboard

    with ExitStack() as stack:
        extra = (stack.enter_context(tensorboard(folder)),) if with_tensorboard else ()
        is_first = os.environ.get("RANK", "0") == "0"  # the processes are not connected yet
        bar = stack.enter_context(_bar()) if is_first and sys.stdout.isatty() else None

        def watch(run: Run) -> None:
            if bar is None:
                run.log_sinks = (*run.log_sinks, *extra)
            else:
                run.log_sinks, run.on_step = (bar.on_record, *extra), bar.on_step

        yield watch


@contextmanager
def _bar() -> Iterator[Display]:
    """A bar with steps, loss, tokens per second and time left. Other records of the log are printed above it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[status]}", markup=False), TimeRemainingColumn()]
    with Progress(*columns, console=out(), speed_estimate_period=600) as progress:
        tasks: dict[str, Any] = {}

        def on_step(run: Run, stage: str, num_steps: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=num_steps, completed=run.step - 1, status="")
            loss = f"loss {run.history.calm[-1]:.3f}  " if run.history.calm else ""
            status = f"{loss}{run.tokens / max(run.seconds, 1e-9):,.0f} tokens/s"
            progress.update(tasks[stage], completed=run.step, status=status)

        def on_record(record: dict[str, Any]) -> None:
            if "tokens_per_second" not in record:
                for line in _lines(record):
                    progress.console.print(clean(line), soft_wrap=True)

        yield Display(on_record, on_step)


def _lines(record: dict[str, Any]) -> Iterator[str]:
    figures = "  ".join(f"{name} {value}" for name, value in record.items() if name not in HIDDEN)
    if figures:
        yield f"{record['stage']} {record.get('step', '')}: {figures}"
    for sample in record.get("samples", ()):
        yield f"    {sample['question']} → {sample['answer'] or '(nothing)'} ({sample['gold']})"
