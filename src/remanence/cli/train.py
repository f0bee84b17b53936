"""`remanence train RECIPE`: trains a model by a recipe, resumable; lists recipes; says what one would take."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from remanence.cli import options as o
from remanence.cli.terminal import note, print_json, say
from remanence.cli.watching import watching

SetOption = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Another value for a field; may be repeated.")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="It holds squad_passages, babi, classic_books; for memory3/*: what `data sequences` made, or its URI.",
    ),
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
AtOption = Annotated[
    str | None, typer.Option("--at", metavar="SIZE", help="Of the recipe's sizes one; without it the smallest.")
]


def train(
    recipe: Annotated[
        str, typer.Argument(help="What to train: nano, memory3/continual, retrofit …; see --list.")
    ] = "nano",
    at: AtOption = None,
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
    """Train a model by a recipe: `nano` first with passages as text, then with memory, then its search head.

    A terminal shows a bar, a pipe the log as it grows, one JSON object a line; with --json on standard error. Many
    processes train one model: `torchrun --nproc-per-node N -m remanence train nano`.
    """
    import torch

    from remanence.cli.training import Wanted, kinds, show_estimate
    from remanence.errors import InputError
    from remanence.train import parallel
    from remanence.train.recipes import recipe_of
    from remanence.train.recipes.override import override

    if listed:
        _list(at, as_json)
        return
    chosen = override(recipe_of(recipe, at), settings)
    kind = kinds()[type(chosen)]
    if stage not in (*kind.stages, "all"):
        raise InputError(f"no stage of {recipe} is called {stage!r}", f"use one of {', '.join(kind.stages)}, or all")
    place = None if data is None else Path(data)
    wanted = Wanted(recipe, stage, place, out, steps, start, resume, damaged == "skip", compiled, data)
    if dry_run:
        show_estimate(chosen, wanted, as_json)
        return
    torch.set_num_threads(threads)
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file", "give --out a folder")
    if not as_json:
        note(f"{recipe}: reading data and preparing the run (a minute or two, the first time)")
    screen = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with screen, watching(out, tensorboard) as watch:
        kind.train(chosen, replace(wanted, watch=watch))
    if as_json and not parallel.rank():
        print_json({"recipe": recipe, "out": str(out), "stages": _figures(out / "log.jsonl")})
    parallel.leave()


def _list(at: str | None, as_json: bool) -> None:
    """Each recipe at size `at` where it is made at that, else at its smallest."""
    from remanence.train.recipes import RECIPES
    from remanence.train.recipes.override import leaves

    chosen = {name: sizes.get(at or "") or next(iter(sizes.values())) for name, sizes in RECIPES.items()}
    if as_json:
        print_json({name: {"sizes": list(RECIPES[name]), **asdict(make())} for name, make in chosen.items()})
        return
    for name, make in chosen.items():
        say((name, "bold"), f"  {(make.__doc__ or '').splitlines()[0]}")
        say((f"  sizes: {', '.join(RECIPES[name])}", "dim"))
        for path, value in leaves(asdict(make())).items():
            say((f"  {path:<28}", "dim"), f" {json.dumps(value)}")


def _figures(log: Path) -> dict[str, dict[str, Any]]:
    """Stage -> the newest value of each of its figures."""
    found: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found.setdefault(record["stage"], {}).update(record)
    return found


if __name__ == "__main__":
    typer.run(train)
