"""`remanence train RECIPE`: trains a model by a recipe, lists the recipes, and estimates what one takes."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from remanence.cli import options as o
from remanence.cli.terminal import note, print_json, say
from remanence.cli.watching import watching

if TYPE_CHECKING:
    from remanence.train.core.stages import TrainArgs

SetOption = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="A new value for a field; may be repeated.")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="A folder with squad_passages, babi, classic_books. For memory3/*: the output of `data sequences`, or a "
        "URI of it.",
    ),
]
StartOption = Annotated[
    Path | None, typer.Option("--start", metavar="FOLDER", help="Begin with this model's weights and tokenizer.")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The folder for log and checkpoints.")]
DamagedOption = Annotated[
    Literal["stop", "skip"], typer.Option("--damaged", help="What to do if a line of a book cannot be read.")
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the layers for the warm-up: faster, but needs a C++ compiler.")
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Also write the log's figures for TensorBoard, into --out.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Estimate what the recipe takes; train nothing.")]
ListOption = Annotated[bool, typer.Option("--list", help="Show recipes and their fields; train nothing.")]
AtOption = Annotated[
    str | None, typer.Option("--at", metavar="SIZE", help="One of the recipe's sizes; the default is the smallest.")
]


def train(
    recipe: Annotated[
        str, typer.Argument(help="What to train: nano, memory3/continual, retrofit …; see --list.")
    ] = "nano",
    at: AtOption = None,
    stage: Annotated[str, typer.Option("--stage", metavar="NAME", help="One of the recipe's stages, or all.")] = "all",
    data: DataOption = None,
    out: OutOption = Path("runs/nano"),
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="Stop at this step of the stage.")
    ] = None,
    start: StartOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    settings: SetOption = [],  # noqa: B006 (typer copies it)
    listed: ListOption = False,
    dry_run: DryRunOption = False,
    damaged: DamagedOption = "stop",
    compiled: CompileOption = False,
    tensorboard: TensorboardOption = False,
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="CPU threads.")] = 2,
    as_json: o.JsonOption = False,
) -> None:
    """Train a model by a recipe: `nano` first with passages as text, then with memory, then its search head.

    A terminal shows a progress bar; a pipe shows the log, one JSON object per line (with --json on standard error).
    Several processes train one model: `torchrun --nproc-per-node N -m remanence train nano`.
    """
    import torch

    from remanence.errors import InputError
    from remanence.train.core import parallel
    from remanence.train.core.fields import override
    from remanence.train.core.stages import TrainArgs, train_recipe
    from remanence.train.recipes import recipe_of
    from remanence.train.trainers import TRAINERS

    if listed:
        _list(at, as_json)
        return
    chosen = override(recipe_of(recipe, at), settings)
    trainer = TRAINERS[type(chosen)]
    if stage not in (*trainer.stages, "all"):
        raise InputError(f"{recipe} has no stage {stage!r}", f"use one of {', '.join(trainer.stages)}, or all")
    place = None if data is None else Path(data)
    args = TrainArgs(recipe, stage, out, place, data, start, steps, resume, damaged == "skip", compiled)
    if dry_run:
        show_estimate(chosen, args, as_json)
        return
    torch.set_num_threads(threads)
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file", "give --out a folder")
    if not as_json:
        note(f"{recipe}: reading data and preparing the run (a minute or two, the first time)")
    screen = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with screen, watching(out, tensorboard) as watch:
        train_recipe(trainer, chosen, replace(args, on_run=watch))
    if as_json and not parallel.rank():
        print_json({"recipe": recipe, "out": str(out), "stages": _figures(out / "log.jsonl")})
    parallel.leave()


def _list(at: str | None, as_json: bool) -> None:
    """Each recipe at size `at`, or at its smallest if it has no such size."""
    from remanence.train.core.fields import leaves
    from remanence.train.recipes import RECIPES

    chosen = {name: sizes.get(at or "") or next(iter(sizes.values())) for name, sizes in RECIPES.items()}
    if as_json:
        print_json({name: {"sizes": list(RECIPES[name]), **asdict(make())} for name, make in chosen.items()})
        return
    for name, make in chosen.items():
        say((name, "bold"), f"  {(make.__doc__ or '').splitlines()[0]}")
        say((f"  sizes: {', '.join(RECIPES[name])}", "dim"))
        for path, value in leaves(asdict(make())).items():
            say((f"  {path:<28}", "dim"), f" {json.dumps(value)}")


def show_estimate(recipe: Any, args: TrainArgs, as_json: bool) -> None:
    """Prints the estimate of a recipe, for people or as JSON."""
    from remanence.errors import InputError
    from remanence.train.cost.estimate import USE, estimate
    from remanence.train.recipes.nano import NanoRecipe

    if args.steps:
        raise InputError("--dry-run counts whole stages", "leave --steps out, or set num_steps of the phases")
    if args.stage != "all" and isinstance(recipe, NanoRecipe):
        stages: Any = (args.stage,)
        recipe = replace(recipe, stages=stages)
    if args.start and hasattr(recipe, "base"):
        recipe = replace(recipe, base=str(args.start))
    result = estimate(recipe)
    if as_json:
        print_json({"recipe": args.name, **result})
        return
    num_bytes = result["bytes_per_device"]
    say((f"{args.name}: ", "bold"), f"{result['parameters']:,} parameters, {num_bytes['1'] / 1e9:,.2f} GB")
    if trained := result.get("trained_parameters"):
        say(f"  {trained:,} are trained, including those of adapters")
    for name, stage in result["stages"].items():
        say(
            f"  {name:<18} {stage['steps']:>9,} steps {round(stage['tokens']):>19,} tokens {stage['flops']:>9.2e} FLOPs"
        )
    hours = (f"{_rounded(hours)} on one {name}" for name, hours in result["hours_on_one"].items())
    say(f"hours at {USE:.0%} of the peak: {', '.join(hours)}")
    many = f"{num_bytes['8'] / 1e9:,.2f} on each of 8" if "8" in num_bytes else "in a single process"
    say((f"GB of weights, gradients, masters and optimizer, without activations; {many}", "dim"))
    if long := result.get("host_bytes"):
        say((f"{long / 1e9:,.2f} GB of long-term memory in the host's RAM", "dim"))


def _rounded(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _figures(log: Path) -> dict[str, dict[str, Any]]:
    """Stage -> the newest value of each of its figures."""
    figures: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        figures.setdefault(record["stage"], {}).update(record)
    return figures


if __name__ == "__main__":
    typer.run(train)
