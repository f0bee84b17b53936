"""The exception tree: every error names what was given, what is allowed, and what to do.

RemanenceError
├── InputError          a file, a text or an argument that cannot be used
│   └── ContextTooLong  more tokens than the model has positions for
├── UnsupportedModel    a model that cannot read memory exactly, with the measured reason
├── MissingExtra        an optional package that this call needs
└── BankError           a bank that cannot be used as asked
    ├── BankMismatch    memories of another model, tokenizer, method or codec
    ├── BankCorrupted   a checksum that does not hold
    ├── BankBusy        another writer holds the bank
    └── UnknownChunk    an id that the bank does not hold
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class RemanenceError(Exception):
    """`str(error)` is one line: what is wrong, then ` -> ` and the way out."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())
        super().__init__(f"{self.message} -> {self.hint}" if hint else self.message)


class InputError(RemanenceError):
    """A file, a text or an argument that cannot be used."""


class ContextTooLong(InputError):
    """More tokens than the model has positions for."""


class UnsupportedModel(RemanenceError):
    """A model that cannot read memory exactly, with the measured reason."""


class MissingExtra(RemanenceError):
    """An optional package that this call needs and that is not installed."""

    def __init__(self, package: str, extra: str, need: str) -> None:
        super().__init__(f"{need} needs {package!r}", f"`pip install '.[{extra}]'` in remanence's source folder")


class BankError(RemanenceError):
    """A bank that cannot be used as asked."""


class BankMismatch(BankError):
    """Memories that another model, tokenizer, method or codec wrote."""


class BankCorrupted(BankError):
    """Bytes on disk that are not what was written."""


class BankBusy(BankError):
    """Another writer holds the bank and did not let go in time."""


class UnknownChunk(BankError):
    """A chunk id that the bank does not hold."""


def suggest(name: str, allowed: Sequence[str]) -> str:
    """A hint for a name that does not exist: the nearest one that does, and all of them."""
    near = difflib.get_close_matches(name, allowed, 1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"there are: {', '.join(allowed)}"


def check_counts(options: object, *names: str) -> None:
    """InputError if one of these fields of `options` is below 1."""
    for name in names:
        if (value := getattr(options, name)) < 1:
            raise InputError(f"{name} is {value}", "use 1 or more")
