"""`remanence doctor`: what is wrong with this environment, model and bank, and what to do about it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from remanence.cli import options as o
from remanence.cli.opening import model_for
from remanence.cli.terminal import clean, print_json, progress, say

STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}


def doctor(
    no_model: Annotated[bool, typer.Option("--no-model", help="Leave the model alone: quick.")] = False,
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    as_json: o.JsonOption = False,
) -> None:
    """Find what is wrong with environment, model and bank, and say what to do.

    Exit code 1 if something is bad.
    """
    from remanence.cli import checks

    with progress("Looking"):
        found = [*checks.environment(), *checks.extras(), *checks.disk(bank)]
        lm, of_model = (None, []) if no_model else checks.model(model_for(method, model))
        found += [*of_model, *checks.training(lm, method), *checks.bank(bank, namespace, lm, method)]
    ok = all(check.state != "bad" for check in found)
    if as_json:
        print_json({"ok": ok, "checks": found})
    else:
        for check in found:
            say((f"{check.state:<5}", STYLES[check.state]), (f"{check.name:<16}", "bold"), clean(check.message))
            if check.fix:
                say(Text(f"{'':21}-> {check.fix}", style="dim"))
    if not ok:
        raise typer.Exit(1)
