"""What `remanence train` shows while it trains: a bar on a terminal, elsewhere the log, one JSON object a line."""

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
    from remanence.train.loop import Run

HIDDEN = ("step", "stage", "samples")


@dataclass(frozen=True)
class Shown:
    """`record` is told every line of the log, `stepped` every step."""

    record: Callable[[dict[str, Any]], None]
    stepped: Callable[[Run, str, int], None]


@contextmanager
def watching(folder: Path, with_tensorboard: bool) -> Iterator[Callable[[Run], None]]:
    """While the block runs, what is given a run shows how it goes, in TensorBoard's files too where that is wanted."""
    from remanence.train.watching import tensorboard

    with ExitStack() as stack:
        extra = (stack.enter_context(tensorboard(folder)),) if with_tensorboard else ()
        is_first = os.environ.get("RANK", "0") == "0"  # of many processes, which have not found each other yet
        bar = stack.enter_context(_bar()) if is_first and sys.stdout.isatty() else None

        def watch(run: Run) -> None:
            if bar is None:
                run.sinks = (*run.sinks, *extra)
            else:
                run.sinks, run.stepped = (bar.record, *extra), bar.stepped

        yield watch


@contextmanager
def _bar() -> Iterator[Shown]:
    """Steps, loss, tokens a second and time left; evaluations, samples and whatever else is logged stand above it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[told]}", markup=False), TimeRemainingColumn()]
    with Progress(*columns, console=out(), speed_estimate_period=600) as progress:
        tasks: dict[str, Any] = {}

        def stepped(run: Run, stage: str, num_steps: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=num_steps, completed=run.step - 1, told="")
            loss = f"loss {run.watched.calm[-1]:.3f}  " if run.watched.calm else ""
            told = f"{loss}{run.tokens / max(run.seconds, 1e-9):,.0f} tokens/s"
            progress.update(tasks[stage], completed=run.step, told=told)

        def record(told: dict[str, Any]) -> None:
            if "tokens_per_second" not in told:
                for line in _lines(told):
                    progress.console.print(clean(line), soft_wrap=True)

        yield Shown(record, stepped)


def _lines(record: dict[str, Any]) -> Iterator[str]:
    figures = "  ".join(f"{name} {value}" for name, value in record.items() if name not in HIDDEN)
    if figures:
        yield f"{record['stage']} {record.get('step', '')}: {figures}"
    for sample in record.get("samples", ()):
        yield f"    {sample['question']} → {sample['answer'] or '(nothing)'} ({sample['gold']})"
