"""What a model on the Hugging Face Hub has beside its weights: its method's settings, a search head, adapters."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from remanence.errors import InputError

SETTINGS = "remanence.json"
HEAD = ("embedder.safetensors", "embedder.json")
ADAPTER = ("latent.safetensors", "read", "write")
ID = re.compile(r"[\w.-]+/[\w.-]+")


def beside(name: str) -> Path | None:
    """The folder of the cache where these files of a Hub id lie, downloaded unless HF_HUB_OFFLINE is set.

    None where it has none of them. InputError where the Hub cannot be asked and the cache does not know either: without
    its settings a model would be read otherwise than it was made for.
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
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, part))
    except LocalEntryNotFoundError as error:  # also what a Hub that is down is told as
        if _is_known_missing(name, part):
            return None
        raise _unknown(name, part, error.__cause__ or error) from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # of several HTTP libraries, by the version of huggingface_hub
        raise _unknown(name, part, error) from error


def _is_known_missing(name: str, part: str) -> bool:
    """Whether nobody is to be asked beside the cache, or it has noted that there is no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, constants, try_to_load_from_cache

    return constants.HF_HUB_OFFLINE or try_to_load_from_cache(name, part) is _CACHED_NO_EXIST


def _unknown(name: str, part: str, error: BaseException) -> InputError:
    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    return InputError(
        f"whether {name} has a {part} cannot be told: {reason}",
        "check the name, the connection and `hf auth login`; HF_HUB_OFFLINE=1 takes the cache as it is",
    )


def _object(file: Path) -> dict[str, Any]:
    """What a settings file says; nothing where it cannot be read, which whoever opens the folder then says."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
