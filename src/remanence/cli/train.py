"""`remanence train RECIPE`: trains a bundled model, in two stages, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="nano or nano-wide")] = "nano",
    stage: Annotated[str, typer.Option(help="warmup, continual, control, export, or all")] = "all",
    data: Annotated[Path | None, typer.Option(help="folder with squad_passages, babi, classic_books")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of logs and checkpoints; runs/RECIPE")] = None,
    steps: Annotated[int | None, typer.Option(help="stop after so many steps of the stage")] = None,
    resume: Annotated[bool, typer.Option(help="continue from the last checkpoint")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Train a bundled model: first with passages as text, then with memory; then its search head."""
    import torch

    from remanence.errors import InputError
    from remanence.train.recipes.nano import RECIPES
    from remanence.train.start import STAGES, run_stage, start_run

    if recipe not in RECIPES:
        raise InputError(f"no recipe is called {recipe!r}", f"use {' or '.join(RECIPES)}")
    if stage not in (*STAGES, "all"):
        raise InputError(f"no stage is called {stage!r}", f"use one of {', '.join(STAGES)} or all")
    torch.set_num_threads(threads)
    out = out or Path("runs") / recipe
    for one in ("warmup", "continual", "export") if stage == "all" else (stage,):
        run_stage(start_run(RECIPES[recipe](), data, out), one, steps, resume and (out / one).exists())


if __name__ == "__main__":
    typer.run(train)
