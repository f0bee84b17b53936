"""What a model on the Hugging Face Hub has beside its weights: its method's settings, a search head, adapters."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

SETTINGS = "remanence.json"
HEAD = ("embedder.safetensors", "embedder.json")
ADAPTER = ("latent.safetensors", "read", "write")
ID = re.compile(r"[\w.-]+/[\w.-]+")


def beside(name: str) -> Path | None:
    """The folder of the cache where these files of a Hub id lie, downloaded unless HF_HUB_OFFLINE is set.

    None where it has none of them, or cannot be asked.
    """
    if not ID.fullmatch(name):
        return None
    settings, *_ = found = [_file(name, SETTINGS), *(_file(name, part) for part in HEAD)]
    if settings and "adapter" in _object(settings):
        latent, *roles = ADAPTER
        parts = [f"{role}/adapter_{part}" for role in roles for part in ("config.json", "model.safetensors")]
        found += [_file(name, part) for part in (latent, *parts)]
    return next((path.parent for path in found if path), None)


def _file(name: str, part: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, part))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None


def _object(file: Path) -> dict[str, Any]:
    """What a settings file says; nothing where it cannot be read, which whoever opens the folder then says."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
