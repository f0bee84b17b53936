"""The options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_COMMON = "Common options"

BankOption = Annotated[
    Path,
    typer.Option(
        "--bank", metavar="FOLDER", help="The bank: the folder that holds texts and memories.", rich_help_panel=_COMMON
    ),
]
NamespaceOption = Annotated[
    str,
    typer.Option(
        "--namespace", metavar="NAME", help="The part of the bank to use; every owner has one.", rich_help_panel=_COMMON
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="nano, nano-chat, nano-mplus, tiny (random weights), a folder, or a Hub id in the cache "
        "(HF_HUB_OFFLINE=0 downloads it).",
        rich_help_panel=_COMMON,
    ),
]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help="How texts are remembered: memory3, memory3:paper, memory3:dense (for models that were not trained for "
        "memory), mplus (a latent pool), retrieved_text, full_context.",
        rich_help_panel=_COMMON,
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="N",
        help="The seed of all random choices: the same seed gives the same answer.",
        rich_help_panel=_COMMON,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=_COMMON)
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
WithoutOption = Annotated[
    list[str], typer.Option("--without", metavar="ID", help="Do not recall this memory. May be repeated.")
]

BANK = Path("bank")
NAMESPACE = "default"
MODEL = "nano"
METHOD = "memory3"
SEED = 0
