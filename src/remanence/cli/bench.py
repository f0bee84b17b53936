"""`remanence bench NAME`: measures costs on this machine, of several systems in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from remanence.cli import options as o
from remanence.cli.terminal import out, print_json, progress, say, table

TokensOption = Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens to generate per round.")]
RepeatsOption = Annotated[int, typer.Option("--repeats", metavar="N", help="Rounds; figures are their medians.")]
ReferenceOption = Annotated[
    int, typer.Option("--reference-tokens", metavar="N", help="Tokens of each of the five references.")
]

app = typer.Typer(no_args_is_help=True, help="Measure what recall and the bank cost on this machine.")


@app.command("recall")
def recall(
    tokens: TokensOption = 256,
    repeats: RepeatsOption = 9,
    reference_tokens: ReferenceOption = 128,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """One question without memory, with memories (in RAM, on disk, not written yet), and with references as text."""
    from remanence.bench.recall import Options, run
    from remanence.lm.lm import load

    options = Options(tokens, repeats, reference_tokens, method=method, seed=seed)
    with progress(f"Loading {model}"):
        lm = load(model)
    with progress("Rounds", total=repeats + 1) as advance:
        result = run(lm, options, advance)
    show(result, as_json)


@app.command("bank")
def bank(
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", help="Chunks to write, about 80 KB of disk each.")
    ] = 10_000,
    queries: Annotated[int, typer.Option("--queries", metavar="N", help="Questions to ask.")] = 200,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="FOLDER", help="The folder for the temporary bank.")
    ] = None,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """A large bank: writing, searching, loading five memories; beside SQLite, NumPy and a memory map."""
    from remanence.bench.bank import run

    with progress("Writing rows", total=rows) as advance:
        result = run(rows, seed, queries, folder, advance)
    show(result, as_json)


@app.command("mplus")
def mplus(
    shape: Annotated[str, typer.Option("--shape", metavar="NAME", help="nano or llama-3.1-8b.")] = "nano",
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", help="Tokens to write before the first question.")
    ] = 16_000,
    repeats: RepeatsOption = 5,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """An M+ pool of a model with random weights: writing, the first token after much text, retrieval, offload."""
    from remanence.bench.mplus import Options, run

    options = Options(shape, tokens, repeats, seed=seed)
    with progress("Writing", total=2 * tokens) as advance:
        result = run(options, advance)
    show(result, as_json)


@app.command("overlap")
def overlap(
    pairs: Annotated[int, typer.Option("--pairs", metavar="N", help="Pairs of a text and a reference.")] = 512,
    repeats: RepeatsOption = 3,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """The filter for references that a text repeats (Memory³ Eq. 6), beside the plain equation."""
    from remanence.bench.overlap import Options, run

    options = Options(pairs, repeats=repeats, seed=seed)
    with progress("Comparing", total=repeats) as advance:
        result = run(options, advance)
    show(result, as_json)


@app.command("train")
def train(
    shape: Annotated[str, typer.Option("--shape", metavar="NAME", help="nano, 0.9b, 2b or llama-3.1-8b.")] = "nano",
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="Sequences per step.")] = 2,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens per sequence.")] = 1024,
    repeats: RepeatsOption = 5,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """A training step on random weights: without memory, with it, and without gradient through the writing."""
    from remanence.train.cost.step_time import STEPS, Options, run

    options = Options(shape, rows, tokens, repeats, seed=seed)
    with progress("Steps", total=len(STEPS) * (repeats + 1)) as advance:
        result = run(options, advance)
    show(result, as_json)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Prints a table with one column per system, or the whole object as JSON."""
    if as_json:
        print_json(result)
        return
    conditions = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["conditions"].items())
    machine = result["machine"]
    say(f"{result['bench']}: {conditions}")
    say(
        (f"{machine['cpu']}, {machine['num_threads']} of {machine['num_cores']} cores, torch {machine['torch']}", "dim")
    )
    systems = result["results"]
    shown = table("", *((name, {"justify": "right"}) for name in systems))
    for figure in dict.fromkeys(name for figures in systems.values() for name in figures):
        cells = (_cell(figures.get(figure)) for figures in systems.values())
        shown.add_row(Text(figure.replace("_", " "), style="cyan"), *cells)
    out().print(shown)
    for name, value in result["ratios"].items():
        say(f"{name.replace('_', ' ')}: ", (f"{value:.2f}", "bold"))


def _cell(value: float | None) -> str:
    """A figure with three significant digits: 0.0213, 4.71, 1,024."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"
