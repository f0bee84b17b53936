"""Opens what a command works on: the bank alone, or a session with model, method and bank."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from remanence.cli import startup
from remanence.cli.terminal import note, progress
from remanence.errors import InputError

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.session import Session


def open_session(
    bank: Path | None, namespace: str, model: str, method: str, seed: int, *, new: bool = False, adopt: bool = False
) -> Session:
    """Loads the model and opens the bank. `new`: the bank may be made; otherwise a missing bank is an InputError.

    `adopt`: the bank's memories may be of another model, to migrate them.
    """
    if bank is not None and not new:
        check_bank(bank)
    if model == "nano-mplus" and method.partition(":")[0] == "memory3":
        note("nano-mplus is nano here: its latent memory is read with --method mplus")
    with progress(f"Loading {model}"):
        from remanence.session import Session

        session = Session(model_for(method, model), bank, method, namespace=namespace, seed=seed, adopt=adopt)
    startup.loaded()
    return session


def model_for(method: str, model: str) -> str:
    """The model to load: for the method mplus, nano has an adapter with a name of its own."""
    return "nano-mplus" if model == "nano" and method.partition(":")[0] == "mplus" else model


def open_bank(bank: Path, namespace: str, *, new: bool = False) -> Bank:
    """Opens a bank without a model."""
    if not new:
        check_bank(bank)
    from remanence.bank import Bank

    opened = Bank.open(bank, namespace=namespace)
    startup.loaded()
    return opened


def check_bank(bank: Path) -> None:
    if not bank.is_dir():
        reason = "is not a folder" if bank.exists() else "does not exist"
        raise InputError(
            f"bank '{bank}' {reason}", f"fill one with `remanence write PATH --bank {shlex.quote(str(bank))}`"
        )
