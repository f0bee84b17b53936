"""`remanence train RECIPE`: trains a bundled model, in two stages, resumable."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from remanence.cli import options as o
from remanence.cli.terminal import print_json, say
from remanence.cli.training import watching

if TYPE_CHECKING:
    from remanence.train.recipes.nano_mplus import LatentRecipe

RETRIEVERS = "retrievers"
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Another value for a field; may be repeated.")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="FOLDER", help="It holds squad_passages, babi, classic_books.")
]
StartOption = Annotated[
    Path | None, typer.Option("--start", metavar="FOLDER", help="Begin with this model's weights and tokenizer.")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where log and checkpoints are kept.")]
DamagedOption = Annotated[
    Literal["stop", "skip"], typer.Option("--damaged", help="What to do where a file of books cannot be read.")
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the layers for the warm-up: faster; needs a C++ compiler.")
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Write the log's figures for TensorBoard too, into --out.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would take; train nothing.")]
ListOption = Annotated[bool, typer.Option("--list", help="Show recipes and their fields; train nothing.")]


def train(
    recipe: Annotated[str, typer.Argument(help="What to train: nano, nano-text, nano-mplus.")] = "nano",
    stage: Annotated[str, typer.Option("--stage", metavar="NAME", help="Of the recipe's stages one, or all.")] = "all",
    data: DataOption = None,
    out: OutOption = Path("runs/nano"),
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="Stop after so many steps of the stage.")
    ] = None,
    start: StartOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    settings: SetOption = [],  # noqa: B006 (typer copies it)
    listed: ListOption = False,
    dry_run: DryRunOption = False,
    damaged: DamagedOption = "stop",
    compiled: CompileOption = False,
    tensorboard: TensorboardOption = False,
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="CPU threads.")] = 2,
    as_json: o.JsonOption = False,
) -> None:
    """Train a bundled model: first with passages as text, then with memory; then its search head.

    A terminal shows a bar, a pipe the log as it grows, one JSON object a line; with --json on standard error. Many
    processes train one model: `torchrun --nproc-per-node N -m remanence train nano`.
    """
    import torch

    from remanence.errors import InputError
    from remanence.train import checkpoint, parallel
    from remanence.train.recipes import LATENT_RECIPES, RECIPES
    from remanence.train.recipes.override import override
    from remanence.train.start import run_stage, start_run

    recipes: dict[str, Any] = {**RECIPES, **LATENT_RECIPES}
    if listed:
        _list(recipes, as_json)
        return
    _check(recipe, stage, recipes)
    if dry_run:
        _estimate(recipe, settings, stage, steps, as_json)
        return
    torch.set_num_threads(threads)
    chosen, skip = override(recipes[recipe](), settings), damaged == "skip"
    screen = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with screen, watching(out, tensorboard) as watch:
        if recipe in LATENT_RECIPES:
            if stage not in ("all", "export", RETRIEVERS) or start or compiled:
                raise InputError(f"{recipe} has no --stage {stage}, --start or --compile", "leave them out")
            _train_latent(chosen, out / recipe, data, steps, resume, stage, skip, watch)
        else:
            stages = chosen.stages if stage == "all" else (stage,)
            for one in stages:
                if one == "export" and parallel.size() > 1:
                    continue  # one process does it: `--stage export` without torchrun
                begins = start if one == stages[0] else None
                run = start_run(chosen, data, out, begins, compiled=compiled, skip_damaged=skip)
                watch(run)
                run_stage(run, one, steps, resume and checkpoint.exists(out / one))
    if as_json and not parallel.rank():
        print_json({"recipe": recipe, "out": str(out), "stages": _figures(out / "log.jsonl")})
    parallel.leave()


def _check(recipe: str, stage: str, recipes: Mapping[str, Any]) -> None:
    from remanence.errors import InputError, suggest
    from remanence.train.recipes import LATENT_RECIPES
    from remanence.train.recipes.nano import STAGES

    if recipe not in recipes:
        raise InputError(f"no recipe is called {recipe!r}", suggest(recipe, list(recipes)))
    if stage not in (*STAGES, "export", "all") and not (recipe in LATENT_RECIPES and stage == RETRIEVERS):
        raise InputError(f"no stage is called {stage!r}", f"use one of {', '.join(STAGES)}, export or all")


def _estimate(recipe: str, settings: list[str], stage: str, steps: int | None, as_json: bool) -> None:
    from remanence.errors import InputError
    from remanence.train.estimate import USE, estimate
    from remanence.train.recipes import RECIPES
    from remanence.train.recipes.override import override

    if recipe not in RECIPES:
        raise InputError(f"{recipe} trains an adapter, which --dry-run does not know", f"use {', '.join(RECIPES)}")
    if steps:
        raise InputError("--dry-run counts whole stages", "leave --steps out, or set num_steps of its phases")
    chosen = override(RECIPES[recipe](), settings)
    found = estimate(chosen if stage == "all" else replace(chosen, stages=(stage,)))
    if as_json:
        print_json({"recipe": recipe, **found})
        return
    say((f"{recipe}: ", "bold"), f"{found['parameters']:,} parameters, {found['bytes_per_device']['1'] / 1e9:,.2f} GB")
    for name, told in found["stages"].items():
        say(f"  {name:<18} {told['steps']:>9,} steps {told['tokens']:>15,} tokens {told['flops']:>9.2e} FLOPs")
    hours = ", ".join(f"{hours:,.2g} on one {name}" for name, hours in found["hours_on_one"].items())
    say(f"hours at {USE:.0%} of the peak: {hours}")
    eighth = found["bytes_per_device"]["8"] / 1e9
    say((f"GB of weights, gradients, masters and optimizer; {eighth:,.2f} on each of 8; no activations", "dim"))


def _list(recipes: Mapping[str, Callable[[], Any]], as_json: bool) -> None:
    from remanence.train.recipes.override import leaves

    if as_json:
        print_json({name: asdict(make()) for name, make in recipes.items()})
        return
    for name, make in recipes.items():
        say((name, "bold"), f"  {(make.__doc__ or '').splitlines()[0]}")
        for path, value in leaves(asdict(make())).items():
            say((f"  {path:<28}", "dim"), f" {json.dumps(value)}")


def _train_latent(
    recipe: LatentRecipe,
    adapter: Path,
    data: Path | None,
    steps: int | None,
    resume: bool,
    stage: str,
    skip: bool,
    watch: Callable[[Any], None],
) -> None:
    """M+'s phases one after the other, then what `--model ADAPTER` loads; the run is kept in the folder around it.

    Stage "retrievers": other projectors for the adapter that is trained already, beside it.
    """
    from remanence.errors import InputError
    from remanence.train import checkpoint, latent_export, latent_start, loop, retriever
    from remanence.train.folder import stage_begins, stage_ends
    from remanence.train.latent import latent

    out = adapter.parent
    if stage != "all" and not checkpoint.exists(out / "latent"):
        raise InputError(f"{str(out)!r} holds no checkpoint", "train first, or name the folder with --out")
    run = latent_start.start_latent_run(recipe, recipe.base, data, out, skip_damaged=skip)
    watch(run)
    task = latent(run, recipe.num_steps)
    if (resume or stage != "all") and checkpoint.exists(out / "latent"):
        loop.resume(run, task)
    if stage == RETRIEVERS:
        adapter.mkdir(exist_ok=True)
        for loss in retriever.LOSSES:
            file = adapter / f"retriever-{loss}.safetensors"
            retriever.train_retriever(run, loss, retriever.STEPS if steps is None else steps, file)
        return
    if stage == "all":
        stage_begins(run, task.stage, recipe, again=run.step > 0)
        loop.train(run, task, min(recipe.num_steps, steps or recipe.num_steps))
        stage_ends(run, task.stage)
    num_bytes = latent_export.export_latent(run, adapter, recipe.base)
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
