"""Every verb of the command line; what a verb needs is imported when it runs, so that help is quick."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from remanence.cli import ask, bank, chat, demo, doctor, why, write

EPILOG = (
    "Exit codes: 0 all well; 1 something is wrong (doctor, verify) or a bug; 2 the input cannot be used; 130 Ctrl-C."
)
LATER = ("eval", "bench", "train")
"""A file of this folder each, attached where it is there: its `app`, or its function of the verb's name."""


app = typer.Typer(
    name="remanence",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"remanence {version('remanence')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Long-term memory for language models: write once, recall exactly, forget for real."""


app.command("demo")(demo.demo)
app.command("write")(write.write)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("why")(why.why)
app.add_typer(bank.app, name="bank")
app.command("doctor")(doctor.doctor)

for verb in LATER:
    if importlib.util.find_spec(f"remanence.cli.{verb}"):
        module = importlib.import_module(f"remanence.cli.{verb}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb)(getattr(module, verb))
