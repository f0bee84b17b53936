"""Model folders: the names of the bundled models, and the files beside a model's weights; read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.lm import hub

ASSETS = Path(__file__).parent.parent / "assets"
BUNDLED = {name: ASSETS / name for name in ("nano", "nano-chat", "nano-mplus")}
SETTINGS = hub.SETTINGS
LATENT = "latent.safetensors"
CONFIG = "config.json"
ROLES = ("write", "read")
"""The adapters that a model may have (`lm/lora.py`)."""


def beside(name: str) -> Path | None:
    """The folder of a model's settings: its own, or the one in the Hub's cache. None: it has no such folder."""
    folder = BUNDLED.get(name, Path(name))
    return folder if folder.is_dir() else hub.beside(name)


def settings(folder: Path) -> dict[str, dict[str, Any]]:
    """What `remanence.json` says; {} where there is none. InputError where it cannot be used."""
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {error}", "get the model again, or remove the file") from error
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise InputError(f"{str(file)!r} is not an object of objects", 'write {"memory3": {"kept_tokens": 8}}, say')
    return found


def config(folder: Path) -> dict[str, Any]:
    """What `config.json` says. InputError where it cannot be read."""
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(folder / CONFIG)!r} cannot be read: {error}", "get the model again") from error


def is_published(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of MemoryLLM's or M+'s authors: a Llama config with their attributes."""
    return config.get("model_type") in ("llama", "memoryllm") and "num_blocks" in config and "num_tokens" in config


def base_of(folder: Path, adapter: Mapping[str, Any]) -> str:
    """The model that an adapter folder belongs to. InputError where it names none, or names an adapter."""
    base, file = adapter.get("base"), str(folder / SETTINGS)
    if not (isinstance(base, str) and base):
        raise InputError(f"{file!r} names no base of its adapter", 'write {"adapter": {"base": "nano"}}, say')
    roles_of(folder, adapter)
    place = beside(base)
    if place and "adapter" in settings(place):
        raise InputError(f"{file!r} names {base!r} as its base, which is an adapter itself", "name a whole model")
    return base


def roles_of(folder: Path, adapter: Mapping[str, Any]) -> tuple[str, ...]:
    """The adapters in the folder, a subfolder each; those of M+, write and read, where it lists none."""
    roles, file = adapter.get("roles", []), str(folder / SETTINGS)
    known = f"known are {', '.join(ROLES)}"
    if not (isinstance(roles, list) and all(isinstance(role, str) for role in roles)):
        raise InputError(f"{file!r} has roles that are no list of names", known)
    if odd := [role for role in roles if role not in ROLES]:
        raise InputError(f"{file!r} names a role {odd[0]!r}", known)
    return tuple(roles) or ROLES
