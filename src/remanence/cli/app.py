"""Every verb of the command line; what a verb needs is imported when it runs, so that help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from remanence.cli import ask, bank, bench, chat, data, demo, doctor, eval, push, train, why, write

EPILOG = (
    "Exit codes: 0 all well; 1 something is wrong (doctor, verify) or a bug; 2 the input cannot be used; 130 Ctrl-C."
)


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
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("push")(push.push)
app.add_typer(eval.app, name="eval")
app.add_typer(bench.app, name="bench")
