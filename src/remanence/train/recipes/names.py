"""Names of stages: each is a folder beside others in a run's folder, and what was there goes when a stage begins."""

from __future__ import annotations

import re

from remanence.errors import InputError

FORM = re.compile(r"[a-z0-9-]+")
TAKEN = ("export", "tokenizer", "tensorboard")
"""Folders of a run that are no stage's; models of other stages are in `export-STAGE`."""


def check_stages(**names: str | None) -> None:
    """InputError for a name (by the field that holds it) that leads elsewhere, or to what is no stage's."""
    for field, name in names.items():
        if name is None:
            continue
        if not FORM.fullmatch(name):
            raise InputError(f"{field} is {name!r}", "name it by small letters, digits and hyphens, as in warmup-2")
        if name in TAKEN or name.startswith("export-"):
            raise InputError(f"{field} is {name!r}, which a run's folder needs itself", "choose another name")
