"""`remanence why`: what the last answers were recalled from, and the answer without a given memory."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remanence.cli import options as o
from remanence.cli.ask import recalled_line, reply_json
from remanence.cli.opening import model_for, open_bank, open_session
from remanence.cli.terminal import clean, one_line, print_json, say
from remanence.errors import InputError

if TYPE_CHECKING:
    from remanence.bank import Answer, Bank
    from remanence.types import Recall


def why(
    context: typer.Context,
    last: Annotated[int, typer.Option("--last", metavar="N", min=1, help="Show the last N answers, newest first.")] = 3,
    without: o.WithoutOption = [],  # noqa: B006 (typer copies it)
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Show which memories the last answers came from.

    With --without ID, the last question is answered again, with and without that memory.
    """
    with open_bank(bank, namespace) as opened:
        found = opened.answers(1 if without else last)
        if not found:
            raise InputError(
                f"nothing was asked in bank '{bank}' yet, or what was asked has been forgotten",
                f'`remanence ask "..." --bank {shlex.quote(str(bank))}`',
            )
        known = [(answer, _recalled(opened, answer)) for answer in found]
    if without:
        given = {"model": model, "method": method, "seed": seed}
        _compare(found[0], without, bank, _as_asked(context, found[0], given), as_json)
    elif as_json:
        print_json({"answers": [_json(answer, recalled) for answer, recalled in known]})
    else:
        for answer, recalled in known:
            _show(answer, recalled)


def _recalled(bank: Bank, answer: Answer) -> list[Recall]:
    """With the texts, which only the bank keeps."""
    from remanence.types import Recall

    chunks = bank.get([recalled.id for recalled in answer.recalled])
    pairs = zip(answer.recalled, chunks, strict=True)
    return [Recall(known.id, chunk.text, chunk.source, known.score, known.share) for known, chunk in pairs]


def _as_asked(context: typer.Context, answer: Answer, given: dict[str, Any]) -> dict[str, Any]:
    """Method and seed of the answer, unless others are named on the command line.

    A model that only the bank's file names is not loaded: the bank may be somebody else's.
    """
    typed = {name for name in given if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"}
    if "model" not in typed and answer.model != given["model"]:
        hint = f"to ask it again add `--model {shlex.quote(answer.model)}`, if you trust that model"
        raise InputError(f"the answer came from model {answer.model!r}, not {given['model']!r}", hint)
    return given | {name: getattr(answer, name) for name in ("method", "seed") if name not in typed}


def _compare(asked: Answer, without: list[str], bank: Any, given: dict[str, Any], as_json: bool) -> None:
    with open_session(bank, asked.namespace, **given) as session:
        other = session.generate(asked.question, **asked.options, without=without)
        reply = session.generate(asked.question, **asked.options)
    if as_json:
        both = {"answer": reply_json(reply), "answer_without": reply_json(other)}
        print_json({"question": asked.question, "without": without, **both})
        return
    say((clean(asked.question), "bold"))
    for heading, shown in (("with all memories", reply), (f"without {' '.join(without)}", other)):
        say((f"{heading}: ", "dim"), (clean(shown.text) or "(no answer)", "green" if shown is reply else "yellow"))
        for recall in shown.recalled:
            say(recalled_line(recall))


def _json(answer: Answer, recalled: list[Recall]) -> dict[str, Any]:
    return asdict(answer) | {"recalled": [asdict(recall) for recall in recalled]}


def _show(answer: Answer, recalled: list[Recall]) -> None:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(answer.time))
    asked_of = one_line(f"{model_for(answer.method, answer.model)}, {answer.method}")
    say((one_line(answer.question), "bold"), (f"  {when}, {asked_of}", "dim"))
    say((one_line(answer.answer) or "(no answer)", "green"))
    for recall in recalled:
        say(recalled_line(recall))
    if not recalled:
        say(("  nothing was recalled", "dim"))
