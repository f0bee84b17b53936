"""`remanence eval retention | ltm-recall | perplexity`: what an M+ pool retains, finds, and does to running text."""

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
EveryOption = Annotated[int, typer.Option("--every", metavar="N", help="Ask all questions after every N of them.")]
NOption = Annotated[int, typer.Option("--n", metavar="N", help="The most facts.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="Facts in SQuAD format; default: generated.")
]
DistractorsOption = Annotated[
    Path | None,
    typer.Option("--distractors", metavar="FILE", help="Books: .txt or .jsonl(.gz); default: generated passages."),
]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw the curves into this file (PNG).")
]


def retention(
    tokens: TokensOption = 160_000,
    every: EveryOption = 10_000,
    n: NOption = 100,
    systems: Annotated[
        str, typer.Option("--systems", metavar="A,B", help="Some of the five systems below.")
    ] = "mplus,mplus_without_ltm,sliding_window,full_context,memory3",
    data: DataOption = None,
    answerable: Annotated[
        bool, typer.Option("--answerable", help="Only questions of --data that the base model answers.")
    ] = False,
    distractors: DistractorsOption = None,
    plot: PlotOption = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Questions per batch.")] = 32,
    model: o.ModelOption = o.MODEL,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """How many facts are answered after more and more other text, as in the figures of M+.

    Systems: mplus, mplus_without_ltm, sliding_window, full_context, memory3.
    """
    from remanence.eval import plots, retention
    from remanence.measurement import check_writable

    chosen = _names(systems)
    options = retention.Options(
        tokens,
        every,
        n,
        chosen,
        batch_size=batch,
        data=data,
        distractors=distractors,
        answerable=answerable,
        seed=seed,
    )
    if plot:
        plots.check_drawable(plot)
        check_writable(plot)
    result = _run(retention.run, options, model)
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
        total, answered = result["conditions"]["answerable"].values()
        say(f"\nThe base model answers {answered} of {total} questions from the passage; the others are left out.")
    elif data is not None:
        note("some questions are too hard for the model even with the passage: --answerable leaves them out")
    if plot:
        note(f"the curves are in {plot}")


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
    """How many of a fact's rows in long-term memory its question retrieves, by retriever, drop policy and ranker."""
    from remanence.eval import ltm_recall

    drop_names, choice_names, loss_names = (_names(text) for text in (drops, choices, losses))
    options = ltm_recall.Options(
        tokens, n, drop_names, choice_names, loss_names, data=data, distractors=distractors, seed=seed
    )
    result = _run(ltm_recall.run, options, model)
    if as_json:
        print_json(result)
        return
    shown = table("retriever", "drop", "choice", ("recall", {"justify": "right"}), ("random", {"justify": "right"}))
    for row in result["table"]:
        shown.add_row(row["loss"], row["drop"], row["choice"], f"{row['recall']:.3f}", f"{row['chance']:.3f}")
    say(f"share of the rows of {result['n']} facts that were retrieved after {tokens:,} tokens of other text\n")
    out().print(shown)


def perplexity(
    n: Annotated[int, typer.Option("--n", metavar="N", help="Texts of up to one chunk each.")] = 200,
    fill: Annotated[int, typer.Option("--fill", metavar="N", help="Tokens of other text in the full pool.")] = 20_000,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Books: .txt or .jsonl(.gz); default: generated.")
    ] = None,
    model: o.ModelOption = o.MODEL,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Loss on running text with a fresh pool and with a pool full of other text, beside the base model's own."""
    from remanence.eval import perplexity

    options = perplexity.Options(n, fill, data=data, seed=seed)
    result = _run(perplexity.run, options, model)
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
    say(f"{result['n']} texts, {tokens:,} tokens; the base model reads a text that no write is about\n")
    out().print(shown)


def _run(run: Callable[..., dict[str, Any]], options: Any, model: str) -> dict[str, Any]:
    """Loads the model and runs an evaluation with a temporary folder for rows and banks."""
    name = model_for("mplus", model)
    with progress(f"Loading {name}"):
        from remanence.lm.load import load

        lm = load(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return run(lm, options, progress, Path(folder))


def _names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
