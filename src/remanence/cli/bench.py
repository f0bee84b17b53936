"""`remanence bench NAME`: measures costs on this machine, of several systems in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.cli import options as o
from remanence.cli.terminal import out, print_json, progress, say, table

TokensOption = Annotated[int, typer.Option("--tokens", metavar="N", help="Generate N tokens in each round.")]
RepeatsOption = Annotated[
    int, typer.Option("--repeats", metavar="N", help="Measure N rounds; each figure is the median.")
]
ReferenceOption = Annotated[
    int, typer.Option("--reference-tokens", metavar="N", help="The length of each of the five references in tokens.")
]

app = typer.Typer(
    no_args_is_help=True,
    help="Measure on this machine what recall, the bank, training and the start of a command cost.",
)


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
    """Measure one question: alone, with memories (in RAM, on disk, not computed yet), and with references as text."""
    from remanence.bench.recall import Options, run
    from remanence.lm.load import load

    options = Options(tokens, repeats, reference_tokens, method=method, seed=seed)
    with progress(f"Loading {model}"):
        lm = load(model)
    with progress("Rounds", total=repeats + 1) as advance:
        result = run(lm, options, advance)
    show(result, as_json)


@app.command("bank")
def bank(
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", help="Write N chunks; each takes about 80 KB of disk.")
    ] = 10_000,
    queries: Annotated[int, typer.Option("--queries", metavar="N", help="Search for N questions.")] = 200,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="FOLDER", help="Make the temporary bank in this folder.")
    ] = None,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Measure a large bank: writing, searching and loading; beside SQLite, NumPy and a memory-mapped file."""
    from remanence.bench.bank import run

    with progress("Writing rows", total=rows) as advance:
        result = run(rows, seed, queries, folder, advance)
    show(result, as_json)


@app.command("mplus")
def mplus(
    shape: Annotated[
        str, typer.Option("--shape", metavar="NAME", help="The size of the model: nano or llama-3.1-8b.")
    ] = "nano",
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", help="Write N tokens of text before the question.")
    ] = 16_000,
    repeats: RepeatsOption = 5,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Measure a latent pool with random weights: writing, the first token, retrieval and offload."""
    from remanence.bench.mplus import Options, run

    options = Options(shape, tokens, repeats, seed=seed)
    with progress("Writing", total=2 * tokens) as advance:
        result = run(options, advance)
    show(result, as_json)


@app.command("overlap")
def overlap(
    pairs: Annotated[int, typer.Option("--pairs", metavar="N", help="Compare N texts, each with one reference.")] = 512,
    repeats: RepeatsOption = 3,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Measure the filter that finds repeated references (Memory³ Eq. 6), beside the equation as it is written."""
    from remanence.bench.overlap import Options, run

    options = Options(pairs, repeats=repeats, seed=seed)
    with progress("Comparing", total=repeats) as advance:
        result = run(options, advance)
    show(result, as_json)


@app.command("train")
def train(
    shape: Annotated[
        str, typer.Option("--shape", metavar="NAME", help="The size of the model: nano, 0.9b, 2b or llama-3.1-8b.")
    ] = "nano",
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="Train on N sequences in each step.")] = 2,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="The length of a sequence in tokens.")] = 1024,
    repeats: RepeatsOption = 5,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Measure a training step with random weights: without memory, with it, and without gradients through writing."""
    from remanence.train.cost.step_time import STEPS, Options, run

    options = Options(shape, rows, tokens, repeats, seed=seed)
    with progress("Steps", total=len(STEPS) * (repeats + 1)) as advance:
        result = run(options, advance)
    show(result, as_json)


@app.command("start")
def start(
    repeats: RepeatsOption = 5,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FOLDER", help="Also measure the version of remanence in this folder (src)."),
    ] = None,
    model: o.ModelOption = o.MODEL,
    as_json: o.JsonOption = False,
) -> None:
    """Measure how long ask, bank list, --help and doctor take in a new process, and which packages they import.

    Beside them: Python alone, `import torch`, `import transformers`. With --against: another version, in turns.
    """
    from remanence.bench.start import Options, run

    options = Options(repeats, model, against)
    with progress("Processes", total=options.num_processes) as advance:
        result = run(options, advance)
    show(result, as_json)
    if not as_json:
        _show_imports(result["imports"])


def _show_imports(imports: dict[str, dict[str, float]]) -> None:
    """Seconds of imports, a column for each command."""
    from rich.text import Text

    shown = table("imports (seconds)", *((name, {"justify": "right"}) for name in imports))
    for package in dict.fromkeys(package for seconds in imports.values() for package in seconds):
        cells = ("" if package not in each else f"{each[package]:.2f}" for each in imports.values())
        shown.add_row(Text(package, style="cyan"), *cells)
    out().print(shown)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Prints a table with one column per system, or the whole object as JSON."""
    if as_json:
        print_json(result)
        return
    from rich.text import Text

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
