"""Uploads a model folder to the Hugging Face Hub, after a check of its files; private unless asked otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.lm.folders import BUNDLED
from remanence.lm.hub import ID, SETTINGS

SUFFIXES = (".json", ".safetensors", ".md", ".png", ".jinja", ".txt")
"""Suffixes of files that may be uploaded: none of them runs code when it is loaded."""
CHECKPOINT = ("progress.json", "run.json")
BASES = (SETTINGS, "adapter_config.json")
"""Files that name the base of an adapter."""
SECRET_NAME = re.compile(r"(hf_)?(token|secrets?|credentials?|passwords?|api_?keys?|id_rsa|netrc)\.\w+", re.IGNORECASE)
SECRET = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{36}"
)


def check_name(name: str) -> None:
    """InputError for a name that is not OWNER/NAME."""
    if not ID.fullmatch(name):
        raise InputError(f"{name!r} is not the name of a model on the Hub", "write OWNER/NAME, as in ada/nano")


def check_folder(folder: Path) -> list[Path]:
    """The files that would be uploaded.

    InputError for a folder without weights or a card, with files that must not be uploaded, or with an adapter whose
    base is a local folder, which nobody else could load.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}", "give one that `remanence train` has written")
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    for path in files:
        if reason := _unfit(path, path.relative_to(folder)):
            name = path.relative_to(folder).as_posix()
            raise InputError(f"{name!r} in {str(folder)!r} {reason}", "move it out of the folder")
    if not any(path.suffix == ".safetensors" for path in files):
        raise InputError(f"{str(folder)!r} holds no weights (.safetensors)", "give a model's folder")
    for path in files:
        if path.name in BASES and (base := _base(path)) and _is_local(base):
            name = path.relative_to(folder).as_posix()
            raise InputError(
                f"{name!r} in {str(folder)!r} names as its base {base!r}, a local folder",
                f"upload the base too, and name it in {' and '.join(BASES)} as OWNER/NAME",
            )
    card = folder / "README.md"
    if not card.is_file() or not card.read_text(encoding="utf-8", errors="replace").startswith("---\n"):
        raise InputError(
            f"{str(folder)!r} has no model card (README.md that begins with its metadata)",
            "`remanence train --stage export` writes one",
        )
    return files


def _unfit(path: Path, name: Path) -> str | None:
    if path.is_symlink():
        return "is a link"
    if any(part.startswith(".") for part in name.parts):
        return "is hidden"
    if path.suffix not in SUFFIXES:
        return f"has another suffix than {', '.join(SUFFIXES)}"
    if path.name in CHECKPOINT:
        return "belongs to a training run, not to a model"
    if SECRET_NAME.fullmatch(path.name) or (path.suffix != ".safetensors" and SECRET.search(path.read_bytes())):
        return "looks like a secret"
    return None


def _base(file: Path) -> str | None:
    """The base of an adapter, from our settings or PEFT's."""
    try:
        settings: Any = json.loads(file.read_text(encoding="utf-8"))
        base = settings["adapter"]["base"] if file.name == SETTINGS else settings["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        return None
    return base if isinstance(base, str) else None


def _is_local(base: str) -> bool:
    """Whether `load` reads this base from a local folder, not from the package or the Hub."""
    return base not in BUNDLED and (base.startswith((".", "~")) or Path(base).is_absolute() or Path(base).is_dir())


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Uploads `folder` as the model `name` (OWNER/NAME), which is created if needed; returns its URL.

    With `public` a private model of that name becomes public after the upload. InputError if `check_folder` refuses the
    folder, HF_HUB_OFFLINE is set, the Hub refuses, or the model is already public and `public` is False.
    """
    check_name(name)
    check_folder(folder)
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE is set, so nothing is uploaded", "HF_HUB_OFFLINE=0 remanence push ...")
    api = HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        is_private = bool(api.model_info(name).private)
        if is_private or public:
            patterns = [f"*{suffix}" for suffix in SUFFIXES]
            message = "Upload a model with remanence"
            api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=patterns, commit_message=message)
        if is_private and public:
            api.update_repo_settings(name, private=False)
            is_private = bool(api.model_info(name).private)
    except Exception as error:  # the HTTP library depends on the version of huggingface_hub
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(
            f"{name} could not be uploaded: {reason}", "check the connection, the name, and `hf auth login`"
        ) from error
    if not (is_private or public):
        raise InputError(f"{name} is already public on the Hub", "add --public, or use another name")
    if is_private and public:
        raise InputError(f"{name} is uploaded, but it is still private", "make it public in its settings there")
    return f"{constants.ENDPOINT}/{name}"
