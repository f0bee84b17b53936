from __future__ import annotations

import io
import json
import sys

import pytest
import typer

from remanence.cli import terminal
from remanence.errors import InputError
from remanence.types import Usage


def test_text_cannot_steer_the_terminal():
    assert terminal.clean("a\x1b[31mred\x07\u202e\tb\nc") == "a�[31mred��\tb\nc"
    assert terminal.one_line("a\n\n  b\x1b" + "c" * 200, 10) == "a b�ccccc…"


def test_json_is_one_object_and_keeps_characters(capsys):
    terminal.print_json({"text": "灯塔", "usage": Usage(1, 2, 3), "path": io})
    out = capsys.readouterr().out
    assert "灯塔" in out
    assert out.count("\n") == 1
    assert json.loads(out)["usage"]["memory_tokens"] == 3


def test_json_cannot_steer_the_terminal_and_is_read_back_unchanged(capsys):
    text = "a\x1b[31m\x9b31m\x7f\u202e\tb\nc"
    terminal.print_json({"text": text})
    out = capsys.readouterr().out
    assert terminal.clean(out) == out
    assert json.loads(out)["text"] == text


def test_markup_in_a_text_is_text(capsys):
    text = "[bold]x[/bold] :smile: [/etc/passwd]"
    terminal.say(text)
    shown = terminal.table("text")
    shown.add_row(text)
    terminal.out().print(shown)
    said, heading, cell = capsys.readouterr().out.splitlines()
    assert (said, heading.strip(), cell.strip()) == (text, "text", text)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_silent_in_a_pipe(capsys):
    with terminal.progress("Working", total=3) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for total in (3, None):
        with terminal.progress("Working on [/a]", total=total) as advance:
            advance(2)
    assert "Working on [/a]" in sys.stderr.getvalue()


@pytest.mark.parametrize(("typed", "agreed"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False)])
def test_confirmation_on_a_terminal(monkeypatch, capsys, typed, agreed):
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    if agreed:
        terminal.confirm("Really?", yes=False)
    else:
        with pytest.raises(typer.Exit) as leaving:
            terminal.confirm("Really?", yes=False)
        assert leaving.value.exit_code == 1
    assert "Really? [y/N]" in capsys.readouterr().err


def test_nobody_to_ask_is_an_error_unless_yes(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    terminal.confirm("Really?", yes=True)
    with pytest.raises(InputError, match="add --yes"):
        terminal.confirm("Really?", yes=False)
