"""`remanence data`: makes data for training."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from remanence.cli import options as o
from remanence.cli.terminal import counted, note, print_json, progress, say

app = typer.Typer(no_args_is_help=True, help="Make data for training.")


@app.callback()
def data() -> None:
    """Keeps the command group, which has only one command."""


@app.command("sequences")
def sequences(
    place: Annotated[
        Path,
        typer.Option(
            "--data", metavar="PATH", help="A file of texts, or a folder, of which files named valid* are held out."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The folder for sequences and references.")],
    model: o.ModelOption = o.MODEL,
    sequence_tokens: Annotated[
        int, typer.Option("--sequence-tokens", metavar="N", help="A multiple of 64; the paper has 2048.")
    ] = 512,
    damaged: Annotated[
        Literal["stop", "skip"], typer.Option("--damaged", help="What to do if a line of a JSONL file cannot be read.")
    ] = "stop",
    as_json: o.JsonOption = False,
) -> None:
    """Make token sequences of running text, with a reference for each 64-token chunk (Memory³ §3.6).

    Reads .jsonl and .jsonl.gz ({"text": ...} on each line), .txt, .md, .html, .pdf. Train on the result with
    `train memory3/continual --data FOLDER`.
    """
    from remanence.train.examples.build_sequences import build
    from remanence.train.examples.references import Cutting
    from remanence.train.examples.tokenizer import load_tokenizer

    cutting, tokenizer = replace(Cutting(), sequence_tokens=sequence_tokens), load_tokenizer(model)
    bad: list[str] | None = [] if damaged == "skip" else None
    with progress("References indexed, then sequences") as advance:
        parts = build(place, out, tokenizer, cutting, bad, advance)
    if bad:
        note(f"{counted(len(bad), 'line was', 'lines were')} skipped, the first: {bad[0]}")
    if as_json:
        descriptions = {name: asdict(about) for name, about in parts.items()}
        print_json({"out": str(out), "skipped": len(bad or []), **descriptions})
        return
    for name, about in parts.items():
        say(
            (f"{name}: ", "bold"),
            f"{about.num_sequences:,} sequences of {about.sequence_tokens} tokens, ",
            f"{about.num_references:,} references; {about.left_out:,} left out, ",
            f"{about.rejected:,} hits rejected (overlap above {about.overlap_limit:g})",
        )
