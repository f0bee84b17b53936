"""`remanence train RECIPE`: trains a bundled model, in two stages, resumable."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.cli import options as o
from remanence.cli.terminal import print_json

LATENT = "nano-mplus"
RETRIEVERS = "retrievers"


def train(
    recipe: Annotated[str, typer.Argument(help="What to train: nano, nano-text, nano-mplus.")] = "nano",
    stage: Annotated[
        str, typer.Option("--stage", metavar="NAME", help="warmup, continual, control, export, retrievers, or all.")
    ] = "all",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="It holds squad_passages, babi, classic_books."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where log and checkpoints are kept.")] = Path(
        "runs/nano"
    ),
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Stop after so many steps of the stage.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--start", metavar="FOLDER", help="Begin with this model's weights and tokenizer.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the layers for the warm-up: faster; needs a C++ compiler.")
    ] = False,
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="CPU threads.")] = 2,
    as_json: o.JsonOption = False,
) -> None:
    """Train a bundled model: first with passages as text, then with memory; then its search head.

    The log is shown as it grows, one JSON object a line; with --json on standard error.
    """
    import torch

    from remanence.errors import InputError
    from remanence.train.recipes import RECIPES
    from remanence.train.start import STAGES, run_stage, start_run

    names = (*RECIPES, LATENT)
    if recipe not in names:
        raise InputError(f"no recipe is called {recipe!r}", f"use one of {', '.join(names)}")
    if stage not in (*STAGES, "all") and (recipe, stage) != (LATENT, RETRIEVERS):
        raise InputError(f"no stage is called {stage!r}", f"use one of {', '.join(STAGES)} or all")
    torch.set_num_threads(threads)
    if recipe == LATENT:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            if stage not in ("all", "export", RETRIEVERS) or start or compiled:
                raise InputError(f"{LATENT} has no --stage {stage}, --start or --compile", "leave them out")
            _train_latent(data, out, steps, resume, stage)
        if as_json:
            print_json({"recipe": recipe, "out": str(out), "stages": _figures(out / "log.jsonl")})
        return
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        chosen = RECIPES[recipe]()
        stages = chosen.stages if stage == "all" else (stage,)
        for one in stages:
            run = start_run(chosen, data, out, start if one == stages[0] else None, compiled)
            run_stage(run, one, steps, resume and (out / one).exists())
    if as_json:
        print_json({"recipe": recipe, "out": str(out), "stages": _figures(out / "log.jsonl")})


def _train_latent(data: Path | None, out: Path, steps: int | None, resume: bool, stage: str) -> None:
    """The adapter of M+: its phases one after the other, then what `--model FOLDER/nano-mplus` loads.

    Stage "retrievers": other projectors for the adapter that is trained already, beside it.
    """
    from remanence.errors import InputError
    from remanence.train import latent, latent_export, latent_run, latent_start, retriever
    from remanence.train.recipes.nano_mplus import LatentRecipe

    if stage != "all" and not (out / "latent").exists():
        raise InputError(f"{str(out)!r} holds no checkpoint", "train first, or name the folder with --out")
    recipe = LatentRecipe()
    run = latent_start.start_latent_run(recipe, recipe.base, data, out)
    if (resume or stage != "all") and (out / "latent").exists():
        latent_run.resume(run)
    if stage == RETRIEVERS:
        (out / LATENT).mkdir(exist_ok=True)
        for loss in retriever.LOSSES:
            file = out / LATENT / f"retriever-{loss}.safetensors"
            retriever.train_retriever(run, loss, retriever.STEPS if steps is None else steps, file)
        return
    if stage == "all":
        latent.train(run, recipe.num_steps, stop=steps)
    num_bytes = latent_export.export_latent(run, out / LATENT, recipe.base)
    run.log({"step": run.step, "stage": "export", "bytes": num_bytes})


def _figures(log: Path) -> dict[str, dict[str, Any]]:
    """Stage -> the newest value of each of its figures."""
    found: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found.setdefault(record["stage"], {}).update(record)
    return found


if __name__ == "__main__":
    typer.run(train)
