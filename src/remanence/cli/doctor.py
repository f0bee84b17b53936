"""`remanence doctor`: finds problems of the environment, the model and the bank, and says what to do about them."""

from __future__ import annotations

from typing import Annotated

import typer

from remanence.cli import options as o
from remanence.cli.opening import model_for
from remanence.cli.terminal import clean, print_json, progress, say

STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}


def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also load the model, run its memory test, and compare the bank with it.")
    ] = False,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not check the model.")] = False,
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    as_json: o.JsonOption = False,
) -> None:
    """Find what is wrong with environment, model and bank, and say what to do.

    Checks versions and files; --deep also loads the model. Exit code 1 if something is bad.
    """
    from remanence.cli import checks

    deep = deep and not no_model
    name = model_for(method, model)
    with progress("Checking"):
        found = [*checks.environment(deep), *checks.extras(), *checks.disk(bank)]
        lm, of_model = checks.model(name) if deep else (None, [])
        described = lm
        if not deep and not no_model:
            described, of_model = checks.model_files(name)
        found += [*of_model, *checks.training(described, method), *checks.bank(bank, namespace, lm, method)]
    ok = all(check.state != "bad" for check in found)
    if as_json:
        print_json({"ok": ok, "checks": found})
    else:
        for check in found:
            say((f"{check.state:<5}", STYLES[check.state]), (f"{check.name:<16}", "bold"), clean(check.message))
            if check.fix:
                say((f"{'':21}-> {check.fix}", "dim"))
    if not ok:
        raise typer.Exit(1)
