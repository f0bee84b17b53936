"""`remanence eval figure11`: trains the models that Memory³'s Figure 11 compares, and prints its figures."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from remanence.cli import options as o
from remanence.cli.terminal import note, out, print_json, say, table


def figure11(
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="A folder with classic_books/{train-*,valid}.jsonl.gz."),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The folder for log and checkpoints.")] = Path(
        "runs/figure11"
    ),
    read: Annotated[bool, typer.Option("--read", help="Train nothing; read what was trained.")] = False,
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of the recipe nano-text; may be repeated."),
    ] = [],  # noqa: B006 (typer copies it)
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the curves into this file (PNG).")
    ] = None,
    as_json: o.JsonOption = False,
) -> None:
    """Memory from scratch, control, and memory after a warm-up without it (Memory³ Figure 11), at nano's scale.

    Trains the recipe nano-text, which takes hours on a CPU. Finished stages are read, others are resumed.
    """
    from remanence.eval import plots
    from remanence.measurement import check_writable
    from remanence.train.core.fields import override
    from remanence.train.memory3 import figure11 as figure
    from remanence.train.recipes.nano_text import nano_text

    recipe = override(nano_text(), settings)
    figure.check(recipe)
    if plot:
        plots.check_drawable(plot)
        check_writable(plot)
    if not read:
        with contextlib.redirect_stdout(sys.stderr):
            figure.train_missing(recipe, data, folder)
    result = figure.collect(recipe, folder)
    if plot:
        figure.draw(result, plot)
    if as_json:
        print_json(result)
        return
    shown = table("", *((name, {"justify": "right"}) for name in ("held-out books, with memory", "without")))
    for name, run in result["systems"].items():
        losses = (run["kept_with_memory"], run["kept_without"])
        shown.add_row(figure.NAMES[name], *("" if loss is None else f"{loss:.4f}" for loss in losses))
    say("nats per token of held-out books, at the end of each run\n")
    out().print(shown)
    for name, value in result["gains"].items():
        say(f"{name.replace('_', ' ')}: ", (f"{value:+.4f}", "bold"))
    say("training loss below the control's from step: ", (str(result["crossing_step"]), "bold"))
    if plot:
        note(f"the curves are in {plot}")
