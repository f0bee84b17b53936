"""`remanence eval retention | ltm-recall | perplexity`: what a latent pool keeps, finds, and does to plain text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.cli import options as o
from remanence.cli.opening import model_for
from remanence.cli.terminal import note, out, print_json, progress, say, table

TokensOption = Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens of other text after the facts.")]
EveryOption = Annotated[int, typer.Option("--every", metavar="N", help="Ask after every so many of them.")]
NOption = Annotated[int, typer.Option("--n", metavar="N", help="Facts at most.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="Facts in SQuAD format; else the generator's.")
]
DistractorsOption = Annotated[
    Path | None,
    typer.Option("--distractors", metavar="FILE", help="Books: .txt or .jsonl(.gz); else the generator's passages."),
]
PlotOption = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the curves here (PNG).")]


def retention(
    tokens: TokensOption = 160_000,
    every: EveryOption = 10_000,
    n: NOption = 100,
    systems: Annotated[
        str, typer.Option("--systems", metavar="A,B", help="Of the five below.")
    ] = "mplus,mplus_without_ltm,sliding_window,full_context,memory3",
    data: DataOption = None,
    answerable: Annotated[
        bool, typer.Option("--answerable", help="Of --data, only what the base model answers from the passage.")
    ] = False,
    distractors: DistractorsOption = None,
    plot: PlotOption = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Questions asked at once.")] = 32,
    model: o.ModelOption = o.MODEL,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """How long facts are answered while other text is read: the curve of M+'s figures.

    Systems: mplus, mplus_without_ltm, sliding_window, full_context, memory3.
    """
    from remanence.eval import plots, report, retention

    chosen = tuple(name.strip() for name in systems.split(",") if name.strip())
    options = retention.Options(
        tokens, every, n, chosen, seed, batch_size=batch, data=data, distractors=distractors, answerable=answerable
    )
    if plot:
        plots.check_drawable(plot)
        report.check_writable(plot)
    result = _sit(retention.run, options, model)
    if plot:
        plots.draw_retention(result, plot)
    if as_json:
        print_json(result)
        return
    shown = table("tokens", *((name, {"justify": "right"}) for name in result["systems"]))
    curves = {name: dict(figures["curve"]) for name, figures in result["systems"].items()}
    for at in sorted({at for curve in curves.values() for at in curve}):
        shown.add_row(f"{at:,}", *("" if at not in curve else f"{curve[at]:.3f}" for curve in curves.values()))
    what = "facts" if data is None else "questions"
    say(f"exact match of {result['n']} {what} after so many tokens of other text\n")
    out().print(shown)
    if answerable:
        asked, known = result["conditions"]["answerable"].values()
        say(f"\nThe base model answers {known} of {asked} questions from the passage; the others are left out.")
    elif data is not None:
        note("questions that the model cannot read say nothing about its memory: --answerable leaves them out")
    if plot:
        note(f"drawn in {plot}")


def ltm_recall(
    tokens: TokensOption = 160_000,
    n: NOption = 100,
    drops: Annotated[
        str, typer.Option("--drops", metavar="A,B", help="random, retrieval, attention, redundancy.")
    ] = "random",
    choices: Annotated[
        str, typer.Option("--choices", metavar="A,B", help="writes, rows, attended, recent, random, oracle.")
    ] = "writes,rows,attended,recent,random,oracle",
    losses: Annotated[
        str, typer.Option("--losses", metavar="A,B", help="trained, or files of `train nano-mplus --stage retrievers`.")
    ] = "trained",
    data: DataOption = None,
    distractors: DistractorsOption = None,
    model: o.ModelOption = o.MODEL,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """How many of a fact's rows in long-term memory its question retrieves, by retriever, drop policy and choice."""
    from remanence.eval import ltm_recall

    lists = [tuple(part.strip() for part in given.split(",") if part.strip()) for given in (drops, choices, losses)]
    options = ltm_recall.Options(tokens, n, *lists, seed=seed, data=data, distractors=distractors)
    result = _sit(ltm_recall.run, options, model)
    if as_json:
        print_json(result)
        return
    shown = table("retriever", "drop", "choice", ("recall", {"justify": "right"}), ("by lot", {"justify": "right"}))
    for row in result["table"]:
        shown.add_row(row["loss"], row["drop"], row["choice"], f"{row['recall']:.3f}", f"{row['chance']:.3f}")
    say(f"share of the rows of {result['n']} facts that were retrieved after {tokens:,} tokens of other text\n")
    out().print(shown)


def perplexity(
    n: Annotated[int, typer.Option("--n", metavar="N", help="Texts of up to one chunk each.")] = 200,
    fill: Annotated[
        int, typer.Option("--fill", metavar="N", help="Tokens of other text that the full pool has read.")
    ] = 20_000,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Books: .txt or .jsonl(.gz); else the generator's.")
    ] = None,
    model: o.ModelOption = o.MODEL,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Loss on running text with an empty pool and with one full of other text, beside the base model's own."""
    from remanence.eval import perplexity

    options = perplexity.Options(n, fill, seed, data=data)
    result = _sit(perplexity.run, options, model)
    if as_json:
        print_json(result)
        return
    shown = table(
        "", *((name, {"justify": "right"}) for name in ("loss (nats)", "perplexity", "to the base", "read with memory"))
    )
    for name, figures in result["systems"].items():
        ratio = figures["perplexity"] / result["systems"]["base"]["perplexity"]
        shown.add_row(
            name.replace("_", " "),
            f"{figures['loss_nats']:.4f}",
            f"{figures['perplexity']:.2f}",
            f"{ratio:.4f}",
            str(figures["read"]),
        )
    tokens = result["systems"]["base"]["tokens"]
    say(f"{result['n']} texts, {tokens:,} tokens; a text that no write is about is left to the base model\n")
    out().print(shown)


def _sit(run: Callable[..., dict[str, Any]], options: Any, model: str) -> dict[str, Any]:
    """Loads the model and gives the exam a folder for rows and banks that is gone afterwards."""
    name = model_for("mplus", model)
    with progress(f"Loading {name}"):
        from remanence.lm.load import load

        lm = load(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return run(lm, options, progress, Path(folder))
