"""`remanence push FOLDER OWNER/NAME`: uploads a trained model to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remanence.cli import options as o
from remanence.cli.terminal import print_json, say


def push(
    folder: Annotated[Path, typer.Argument(help="A folder that `remanence train` has exported.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The name of the model on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make the model public; by default it is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded; upload nothing.")] = False,
    as_json: o.JsonOption = False,
) -> None:
    """Upload a model folder to the Hugging Face Hub, where `rm.load("OWNER/NAME")` finds it.

    Needs HF_HUB_OFFLINE=0 and a login (`hf auth login`, or HF_TOKEN). A folder must have a card, and may hold nothing
    but weights, settings, tokenizer, card and pictures.
    """
    from remanence.train.export import publish

    publish.check_name(name)
    files = [path.relative_to(folder).as_posix() for path in publish.check_folder(folder)]
    address = None if dry_run else publish.push(folder, name, public=public)
    if as_json:
        print_json({"name": name, "address": address, "public": public, "files": files})
        return
    say("would be uploaded: " if dry_run else f"{address} now holds: ", ", ".join(files))
