"""The options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_COMMON = "Common options"

BankOption = Annotated[
    Path, typer.Option("--bank", metavar="FOLDER", help="Where memories are kept.", rich_help_panel=_COMMON)
]
NamespaceOption = Annotated[
    str, typer.Option("--namespace", metavar="NAME", help="One owner's part of the bank.", rich_help_panel=_COMMON)
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="nano, nano-chat, nano-mplus, tiny (random), a folder, a cached Hub id (HF_HUB_OFFLINE=0 downloads).",
        rich_help_panel=_COMMON,
    ),
]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help="memory3, memory3:paper, memory3:dense (models not trained for memory), mplus (a latent pool), "
        "retrieved_text, full_context.",
        rich_help_panel=_COMMON,
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", help="Same seed, same answer.", rich_help_panel=_COMMON)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_COMMON)]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
WithoutOption = Annotated[
    list[str], typer.Option("--without", metavar="ID", help="A memory that must not be recalled; may be repeated.")
]

BANK = Path("bank")
NAMESPACE = "default"
MODEL = "nano"
METHOD = "memory3"
SEED = 0
