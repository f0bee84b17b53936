"""Loads models by name: bundled ones, folders, Hub ids, adapters of a base, and published checkpoints of M+."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from remanence import arguments
from remanence.errors import InputError
from remanence.lm import folders, lora
from remanence.lm.embedder import SearchHead
from remanence.lm.fingerprint import fingerprint
from remanence.lm.folders import BUNDLED
from remanence.lm.lm import LM


@dataclass(frozen=True)
class _Parts:
    """What an `LM` is made of; `known` are its other arguments."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    known: dict[str, Any] = field(default_factory=dict)


def from_transformers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> LM:
    """Gives `model` memory. Raises UnsupportedModel, with the measured error, where it cannot be exact."""
    return LM(model.eval(), tokenizer, name or model.config._name_or_path or model.config.model_type)


def load(name: str | Path, *, device: str | None = None, dtype: torch.dtype | str | None = None) -> LM:
    """A bundled model ("nano", "nano-chat", "nano-mplus"), a random one for tests ("tiny"), a folder, or a Hub id.

    `dtype` None: float32 on the CPU, the checkpoint's own elsewhere. Raises InputError for an unknown name
    and UnsupportedModel for a model that cannot read memory exactly.
    """
    name, device, dtype = _checked(name, device, dtype)
    place = None if name == "tiny" else folders.beside(name)
    settings = folders.settings(place) if place else {}
    if place and "adapter" in settings:
        parts = _adapted(place, settings, device, dtype)
    else:
        parts = _whole(name, place, settings, device, dtype)
    return LM(parts.model, parts.tokenizer, name, **parts.known)


def _checked(name: Any, device: Any, dtype: Any) -> tuple[str, str, torch.dtype | str | None]:
    """The arguments of `load` as name or path, device and dtype. InputError for what none of them can be."""
    name = arguments.name_or_path("model", name)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    try:
        device = str(torch.device(device))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"device is {arguments.shown(device)}", 'use "cpu", "cuda" or "cuda:1", say') from error
    if dtype is None or dtype == "auto":
        return name, device, dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"dtype is {arguments.shown(dtype)}", 'use "float32", "bfloat16", "float16" or "auto"')
    return name, device, found


def _whole(
    name: str, place: Path | None, settings: dict[str, Any], device: str, dtype: torch.dtype | str | None
) -> _Parts:
    """A model with weights of its own. `place`: the folder of its settings and its search head."""
    if name == "tiny":
        from remanence.lm import tiny

        return _Parts(_on(tiny.tiny_model(), device), tiny.byte_tokenizer())
    folder = BUNDLED.get(name, Path(name))
    is_folder = (folder / folders.CONFIG).is_file()
    if is_folder and folders.is_published(folders.config(folder)):
        return _published(folder, device, dtype)
    where, local = (str(folder), True) if is_folder else (name, "/" not in name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local, trust_remote_code=False)
        dtype = dtype or (torch.float32 if device == "cpu" else "auto")
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, local_files_only=local, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        known = str(error) and (is_folder or not local)
        reason = str(error).splitlines()[0] if known else "there is no such folder or cached model"
        raise InputError(
            f"model {name!r} cannot be loaded: {reason}",
            "use 'nano', a folder with config.json and safetensors, or a Hub id of the form owner/name",
        ) from error
    head = SearchHead.beside(place) if place else None
    return _Parts(_on(model, device), tokenizer, {"settings": settings, "search_head": head})


def _adapted(place: Path, settings: dict[str, Any], device: str, dtype: torch.dtype | str | None) -> _Parts:
    """A base with the adapters of a folder: both of M+ and its latent tensors, or those that `roles` lists.

    Without a role it is the base, bit for bit. Adapters that only read keep the base's fingerprint.
    """
    adapter = settings["adapter"]
    base, roles = folders.base_of(place, adapter), folders.roles_of(place, adapter)
    base_place = None if base == "tiny" else folders.beside(base)
    parts = _whole(base, base_place, folders.settings(base_place) if base_place else {}, device, dtype)
    known = {**parts.known, "settings": settings, "latent": None}
    if "write" not in roles:
        known["fingerprint"] = fingerprint(parts.model, parts.tokenizer)  # now, while the model is the base alone
    lora.add_roles(parts.model, lora.read_config(place / roles[0]), roles)
    for role in roles:
        lora.load_adapter(parts.model, role, place / role)
    parts.model.eval()
    if adapter.get("roles"):
        known["reads_as"] = "read" if "read" in roles else None
        known["writes_as"] = "write" if "write" in roles else None
    else:
        known["latent"] = _tensors(place / folders.LATENT)
    return replace(parts, known=known)


def _published(folder: Path, device: str, dtype: torch.dtype | str | None) -> _Parts:
    """A checkpoint of MemoryLLM or M+ as its authors published it; bfloat16 frequencies, which it was trained with."""
    from remanence.lm import published

    state = {key: t for file in sorted(folder.glob("*.safetensors")) for key, t in _tensors(file).items()}
    if dtype is None:
        dtype = torch.float32 if device == "cpu" else "auto"
    exact: Any = dtype
    if isinstance(dtype, str):
        exact = state["memory"].dtype if dtype == "auto" else getattr(torch, dtype)
    made = published.convert(folders.config(folder), state, inv_freq_dtype=torch.bfloat16, dtype=exact)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    known = {"latent": made.latent, "settings": {"mplus": made.settings}}
    return _Parts(_on(made.model, device), tokenizer, known)


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{str(file)!r} cannot be read: {reason}", "get the model again") from error


def _on(model: Any, device: str) -> PreTrainedModel:
    return model.eval().to(device)
