"""The command line: `main` runs one command and turns every error into one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from remanence.cli import startup
from remanence.errors import RemanenceError

FINE, BAD, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all well; something is wrong (or a bug); the input cannot be used; Ctrl-C."""
QUICK = ("ask", "bank", "chat", "demo", "doctor", "why", "write")
"""Verbs that say themselves when they have loaded what they need (`opening`)."""


def main() -> None:
    """The `remanence` command of a fresh process."""
    startup.begin()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal or pipe without UTF-8 gets '?', not a crash
    _quiet("--debug" in sys.argv)
    code = run(sys.argv[1:])
    startup.end()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """The exit code of `remanence ARGUMENTS`; nothing is raised."""
    debug = "--debug" in arguments
    try:
        return _command([argument for argument in arguments if argument != "--debug"])
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _failed(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def _command(arguments: list[str]) -> int:
    import typer

    from remanence.cli.app import build

    app = build(arguments)
    if arguments[:1] and arguments[0] not in QUICK:
        startup.loaded()
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]
    try:
        result = app(arguments, prog_name="remanence", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else FINE
    except typer.Abort:
        return INTERRUPTED
    except usage_error as error:
        return _misused(error)


def _misused(error: BaseException) -> int:
    from remanence.cli.terminal import fail

    context = getattr(error, "ctx", None)
    path = context.command_path if context else "remanence"
    message = getattr(error, "format_message", error.__str__)()
    if not message:  # a group without a verb: typer has shown the help
        return UNUSABLE
    fail(f"{' '.join(message.split()).rstrip('.')} -> {path} --help")
    return UNUSABLE


def _failed(error: Exception) -> int:
    from remanence.cli.terminal import fail

    if isinstance(error, RemanenceError):
        fail(str(error))
        return UNUSABLE
    if isinstance(error, BrokenPipeError):  # `remanence bank list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    reason = " ".join(str(error).split()) or type(error).__name__
    if "No space left on device" in reason:
        fail("the disk is full -> free some space and run this again: what was acknowledged is safe")
        return UNUSABLE
    if isinstance(error, OSError):
        fail(f"{reason} -> check the path, the disk and your permissions")
        return UNUSABLE
    fail(f"{type(error).__name__}: {reason} -> run with --debug for the traceback, and please report it")
    return BAD


def _quiet(debug: bool) -> None:
    """Nothing is downloaded unasked, and libraries speak only where a person looks for trouble."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if debug or sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)
