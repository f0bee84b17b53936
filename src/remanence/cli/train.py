"""`remanence train RECIPE`: trains a bundled model, in two stages, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="nano")] = "nano",
    stage: Annotated[str, typer.Option(help="warmup, continual or all")] = "all",
    data: Annotated[Path | None, typer.Option(help="folder with squad_passages, babi, classic_books")] = None,
    out: Annotated[Path, typer.Option(help="folder of logs and checkpoints")] = Path("runs/nano"),
    steps: Annotated[int | None, typer.Option(help="stop after so many steps of the stage")] = None,
    resume: Annotated[bool, typer.Option(help="continue from the last checkpoint")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Train a bundled model: first with passages as text, then with memory."""
    import torch

    from remanence.train import loop
    from remanence.train.recipes.nano import Recipe
    from remanence.train.start import start_run

    torch.set_num_threads(threads)
    chosen = Recipe()
    run = start_run(chosen, data, out)
    if resume:
        loop.resume(run, "warmup")
    loop.warm_up(run, steps or sum(phase.num_steps for phase in chosen.warmup))


if __name__ == "__main__":
    typer.run(train)
