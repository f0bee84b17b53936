"""What a model's files say without being loaded: whether they are all there and whole, and what they are made for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.lm import folders, hub

AGAIN = "get the model again"


@dataclass(frozen=True)
class ModelFiles:
    """`summary`: family, size and files of a model whose files are all there and whole."""

    name: str
    summary: str
    settings: dict[str, Any] = field(default_factory=dict)


def read(name: str) -> ModelFiles:
    """Raises InputError for the first thing that would keep the model from being loaded."""
    if name == "tiny":
        return ModelFiles(name, "tiny: random weights, made when it is loaded")
    place = folders.beside(name)
    settings = folders.settings(place) if place else {}
    if place and "adapter" in settings:
        base = folders.base_of(place, settings["adapter"])
        roles = folders.roles_of(place, settings["adapter"])
        _check_adapters(place, roles, latent=not settings["adapter"].get("roles"))
        return ModelFiles(name, f"{name}: adapters ({', '.join(roles)}) of {read(base).summary}", settings)
    folder = _folder(name)
    config, weights = folders.config(folder), _weights(folder)
    for file in weights:
        _check_tensors(file)
    _check_tokenizer(folder)
    num_bytes = sum(file.stat().st_size for file in weights)
    layers, width = config.get("num_hidden_layers", "?"), config.get("hidden_size", "?")
    size = f"{layers} layers, width {width}, {num_bytes / 1e6:,.1f} MB of weights"
    return ModelFiles(name, f"{name}: {config.get('model_type', 'an unknown family')}, {size}", settings)


def _folder(name: str) -> Path:
    """Where weights and config lie: a bundled model's folder, a folder of that name, or the Hub's cache."""
    folder = folders.BUNDLED.get(name, Path(name))
    if (folder / folders.CONFIG).is_file():
        return folder
    if not folder.is_dir() and hub.ID.fullmatch(name):
        from huggingface_hub import try_to_load_from_cache

        if isinstance(cached := try_to_load_from_cache(name, folders.CONFIG), str):
            return Path(cached).parent
        raise InputError(f"{name} is not in the Hub's cache", f"`HF_HUB_OFFLINE=0 hf download {name}`, or another name")
    raise InputError(
        f"there is no model {name!r}", "use 'nano', a folder with config.json and safetensors, or a Hub id owner/name"
    )


def _weights(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in _json(index).get("weight_map", {}).values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
        files = [file for file in files if file.name != hub.HEAD[0]]
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{str(folder)!r} lacks {missing[0]}, which its index names", AGAIN)
    if not files:
        raise InputError(f"{str(folder)!r} holds no weights in safetensors", AGAIN)
    return files


def _check_adapters(place: Path, roles: tuple[str, ...], latent: bool) -> None:
    for role in roles:
        _json(place / role / "adapter_config.json")
        _check_tensors(place / role / "adapter_model.safetensors")
    if latent:
        _check_tensors(place / folders.LATENT)


def _check_tensors(file: Path) -> None:
    """The header is read, and the file is as long as it says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            opened.keys()
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {error}", AGAIN) from error


def _check_tokenizer(folder: Path) -> None:
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise InputError(f"{str(folder)!r} holds no tokenizer ({', '.join(names)})", AGAIN)
    for file in found:
        if file.suffix == ".json":
            _json(file)


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {error}", AGAIN) from error
