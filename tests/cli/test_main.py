from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from remanence import cli
from remanence.bank import Bank, NewChunk
from remanence.cli import doctor as doctor_module
from remanence.errors import BankBusy

VERBS = ["demo", "write", "ask", "chat", "why", "bank", "doctor", "train", "push", "eval", "bench"]
COMMON = {"--bank", "--namespace", "--json"}
WITH_MODEL = {"--model", "--method"}


def test_help_lists_every_verb_and_the_exit_codes(call):
    outcome = call("--help")
    assert outcome.code == 0
    for verb in VERBS:
        assert f" {verb} " in outcome.out
    assert "Exit codes" in outcome.out


@pytest.mark.parametrize(
    "verb", [["write"], ["ask"], ["chat"], ["why"], ["doctor"], ["bank", "verify"], ["bank", "migrate"]]
)
def test_common_options_are_the_same_everywhere(call, verb):
    text = call(*verb, "--help").out
    assert all(option in text for option in COMMON | WITH_MODEL)


@pytest.mark.parametrize("verb", "stats list search show forget compact export import".split())
def test_every_bank_verb_takes_the_common_options(call, verb):
    text = call("bank", verb, "--help").out
    assert all(option in text for option in COMMON)


def test_help_does_not_load_torch():
    code = "import sys; from remanence.cli import run; run(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"


def test_the_command_is_installed_and_prints_its_version():
    command = os.path.join(os.path.dirname(sys.executable), "remanence")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("remanence ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bnak"], "No such command 'bnak'. Did you mean 'bank'"),
        (["ask", "x", "--modle", "y"], "No such option: --modle"),
        (["bank", "list", "--limit", "many"], "Invalid value for '--limit'"),
        (["why"], "bank 'bank' does not exist -> fill one with `remanence write PATH --bank bank`"),
        (["ask", "x", "--model", "no/such-model", "--bank", "."], "no/such-model"),
        (["ask", ""], "'the question' is empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(call, arguments, said):
    outcome = call(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: ")
    assert said in outcome.err


@pytest.fixture
def failing(monkeypatch):
    """Makes `remanence doctor` fail as given."""

    def fail_with(error: BaseException) -> None:
        def raise_it() -> None:
            raise error

        monkeypatch.setattr(doctor_module, "doctor", raise_it)

    return fail_with


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BankBusy("bank 'b' is in use", "wait"), 2, "error: bank 'b' is in use -> wait"),
        (ZeroDivisionError("division\nby zero"), 1, "error: ZeroDivisionError: division by zero -> run with --debug"),
        (OSError(28, "No space left on device"), 2, "error: the disk is full -> free some space"),
        (PermissionError(13, "Permission denied", "bank"), 2, "check the path, the disk and your permissions"),
        (KeyboardInterrupt(), 130, ""),
        (SystemError(), 1, "error: SystemError: SystemError"),
    ],
)
def test_every_error_is_one_line_with_its_exit_code(call, failing, error, code, said):
    failing(error)
    outcome = call("doctor")
    assert outcome.code == code
    assert said in outcome.err
    assert outcome.err.count("\n") <= 1


def test_a_pipe_without_utf8_gets_all_of_an_object_and_what_it_can_show_of_a_text(tmp_path):
    with Bank.open(tmp_path / "bank") as bank:
        bank.add([NewChunk("灯塔 has 94 steps", num_tokens=3)])
    command = [os.path.join(os.path.dirname(sys.executable), "remanence"), "bank", "list"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    given, shown = (
        subprocess.run([*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        for more in (["--json"], [])
    )
    assert json.loads(given.stdout)["chunks"][0]["text"] == "灯塔 has 94 steps"
    assert "?? has 94 steps" in shown.stdout


def test_debug_shows_the_traceback(call, failing):
    failing(ZeroDivisionError("oh"))
    assert "Traceback" not in call("doctor").err
    assert "Traceback" in call("doctor", "--debug").err


def test_main_leaves_with_the_exit_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["remanence", "nonsense", "--debug"])  # else it would quiet warnings for all tests
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 2
