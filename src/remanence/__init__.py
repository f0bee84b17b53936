"""Long-term memory for language models: write once, recall exactly, forget for real."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.errors import (
        BankBusy,
        BankCorrupted,
        BankError,
        BankMismatch,
        ContextTooLong,
        InputError,
        MissingExtra,
        RemanenceError,
        UnknownChunk,
        UnsupportedModel,
    )
    from remanence.generation import Stream
    from remanence.lm.lm import LM
    from remanence.lm.load import from_transformers, load
    from remanence.session import Session
    from remanence.types import (
        KV,
        Chunk,
        ExplicitMemory,
        ForgetReceipt,
        Hit,
        Memory,
        Prefix,
        Recall,
        Receipt,
        Reply,
        Usage,
    )

__version__ = "0.1.0"

# Where each public name lives. Imported on first use, so that `import remanence` costs nothing.
_HOME = {
    "bank": ["Bank"],
    "errors": [
        "BankBusy",
        "BankCorrupted",
        "BankError",
        "BankMismatch",
        "ContextTooLong",
        "InputError",
        "MissingExtra",
        "RemanenceError",
        "UnknownChunk",
        "UnsupportedModel",
    ],
    "generation": ["Stream"],
    "lm.lm": ["LM"],
    "lm.load": ["from_transformers", "load"],
    "session": ["Session"],
    "types": [
        "KV",
        "Chunk",
        "ExplicitMemory",
        "ForgetReceipt",
        "Hit",
        "Memory",
        "Prefix",
        "Recall",
        "Receipt",
        "Reply",
        "Usage",
    ],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "KV",
    "LM",
    "Bank",
    "BankBusy",
    "BankCorrupted",
    "BankError",
    "BankMismatch",
    "Chunk",
    "ContextTooLong",
    "ExplicitMemory",
    "ForgetReceipt",
    "Hit",
    "InputError",
    "Memory",
    "MissingExtra",
    "Prefix",
    "Recall",
    "Receipt",
    "RemanenceError",
    "Reply",
    "Session",
    "Stream",
    "UnknownChunk",
    "UnsupportedModel",
    "Usage",
    "from_transformers",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'remanence' has no attribute {name!r}")
    return getattr(importlib.import_module(f"remanence.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
