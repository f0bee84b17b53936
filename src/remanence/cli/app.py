"""The verbs of the command line; a verb's module is imported when the verb is used, or shown in the help."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated

import typer

EPILOG = (
    "Exit codes: 0 all well; 1 something is wrong (doctor, verify) or a bug; 2 the input cannot be used; 130 Ctrl-C."
)
VERBS = {
    "demo": "command",
    "write": "command",
    "ask": "command",
    "chat": "command",
    "why": "command",
    "bank": "group",
    "doctor": "command",
    "data": "group",
    "train": "command",
    "push": "command",
    "eval": "group",
    "bench": "group",
}
"""In the order of the help. A verb is `remanence.cli.VERB`: a function of its name, or an `app` of further verbs."""


def build(arguments: Sequence[str] = ()) -> typer.Typer:
    """The command line with the verb that `arguments` begin with, or with all of them, for help and for errors."""
    app = typer.Typer(
        name="remanence",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=EPILOG,
    )
    app.callback()(root)
    first = arguments[0] if arguments else ""
    for verb in () if first == "--version" else (first,) if first in VERBS else VERBS:
        module = importlib.import_module(f"remanence.cli.{verb}")
        if VERBS[verb] == "group":
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb)(getattr(module, verb))
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"remanence {version('remanence')}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Long-term memory for language models: write once, recall exactly, forget for real."""
