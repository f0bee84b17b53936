"""Output of commands: text and tables for people, one JSON object for programs, progress on a terminal only."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from remanence.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPE_WIDTH = 160
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def out() -> Console:
    return _console(sys.stdout)


def err() -> Console:
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    from rich.console import Console

    width = None if file.isatty() else PIPE_WIDTH
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def clean(text: str) -> str:
    """Text of a document or a model without the characters that control a terminal."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str, width: int = 100) -> str:
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def say(*parts: str | Text | tuple[str, str]) -> None:
    """A line for people; strings are shown as they are, Text in its style."""
    from rich.text import Text

    out().print(Text.assemble(*parts), soft_wrap=True)


def note(message: str) -> None:
    """A line beside the output, on standard error."""
    _aside((message, "dim"))


def warn(message: str) -> None:
    _aside(("warning: ", "yellow"), message)


def fail(message: str) -> None:
    _aside(("error: ", "bold red"), clean(message))


def _aside(*parts: str | Text | tuple[str, str]) -> None:
    from rich.text import Text

    err().print(Text.assemble(*parts), soft_wrap=True)


def print_json(value: Any) -> None:
    """Prints one JSON object, indented on a terminal. Characters that control a terminal are escaped."""
    indent = 2 if sys.stdout.isatty() else None
    ascii_only = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent, default=_plain)
    sys.stdout.write(CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def table(*columns: str | tuple[str, dict[str, Any]], title: str | None = None) -> Table:
    """An empty table; a column is its heading, or heading and rich's options."""
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        heading, options = (column, {}) if isinstance(column, str) else column
        made.add_column(heading, **options)
    return made


def read_input() -> str:
    """Standard input as text; InputError where it is not UTF-8."""
    if not hasattr(sys.stdin, "buffer"):
        return sys.stdin.read()
    from remanence.text.decode import decode

    return decode(sys.stdin.buffer.read(), "stdin")


def prompt(text: str, style: str = "") -> None:
    """A prompt on standard error; the answer is typed behind it."""
    from rich.text import Text

    err().print(Text(text, style=style), end="")


def confirm(question: str, yes: bool) -> None:
    """Returns if the user agrees, and ends the command if not. InputError without a terminal and without --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{question} Nobody is there to answer", "add --yes")
    prompt(f"{question} [y/N] ")
    if input().strip().lower() not in ("y", "yes"):
        import typer

        note("nothing was changed")
        raise typer.Exit(1)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Shows a bar while the block runs (without `total`: a counter). Call the yielded function with the steps done."""
    if not sys.stderr.isatty():
        yield lambda steps: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    middle = [BarColumn(), MofNCompleteColumn()] if total is not None else [TextColumn("{task.fields[done]}")]
    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), *middle, TimeElapsedColumn()]
    with Progress(*columns, console=err(), transient=True) as bar:
        task = bar.add_task(label, total=total, done="")

        def advance(steps: int) -> None:
            bar.advance(task, steps)
            bar.update(task, done=f"{bar.tasks[0].completed:,.0f}")

        yield advance


def counted(number: int, one: str, many: str) -> str:
    """As people write it: "1 text", "2,000 texts"."""
    return f"{number:,} {one if number == 1 else many}"
