"""`remanence data`: makes what a training run reads."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from remanence.cli import options as o
from remanence.cli.terminal import counted, note, print_json, progress, say

app = typer.Typer(no_args_is_help=True, help="Make what a training run reads.")


@app.callback()
def data() -> None:
    """A group of one command keeps its name."""


@app.command("sequences")
def sequences(
    place: Annotated[
        Path, typer.Option("--data", metavar="PATH", help="A file of texts, or a folder; valid* is kept apart.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where sequences and references are put.")],
    model: o.ModelOption = o.MODEL,
    sequence_tokens: Annotated[
        int, typer.Option("--sequence-tokens", metavar="N", help="A multiple of 64; the paper has 2048.")
    ] = 512,
    damaged: Annotated[
        Literal["stop", "skip"], typer.Option("--damaged", help="What to do where a JSONL file cannot be read.")
    ] = "stop",
    as_json: o.JsonOption = False,
) -> None:
    """Running text as token sequences, each 64-token chunk with a reference found offline (Memory³ §3.6).

    Reads .jsonl and .jsonl.gz ({"text": ...} a line), .txt, .md, .html, .pdf. `train memory3/continual --data FOLDER`
    trains on what comes out.
    """
    from remanence.train.build_sequences import build
    from remanence.train.references import Cutting
    from remanence.train.tokenizer import load_tokenizer

    cutting, tokenizer = replace(Cutting(), sequence_tokens=sequence_tokens), load_tokenizer(model)
    bad: list[str] | None = [] if damaged == "skip" else None
    with progress("References indexed, then sequences") as advance:
        made = build(place, out, tokenizer, cutting, bad, advance)
    if bad:
        note(f"{counted(len(bad), 'line was', 'lines were')} skipped, the first: {bad[0]}")
    if as_json:
        told = {name: asdict(about) for name, about in made.items()}
        print_json({"out": str(out), "skipped": len(bad or []), **told})
        return
    for name, about in made.items():
        say(
            (f"{name}: ", "bold"),
            f"{about.num_sequences:,} sequences of {about.sequence_tokens} tokens, ",
            f"{about.num_references:,} references; {about.left_out:,} left out, ",
            f"{about.rejected:,} hits rejected (overlap above {about.overlap_limit:g})",
        )
