"""What a stored memory is valid for: weights, configuration and tokenizer, without what says nothing about a model."""

from __future__ import annotations

import copy
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

IRRELEVANT = {
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "dtype",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Fields of a configuration that change no key and no value, wherever they stand in it."""


def fingerprint(model: PreTrainedModel, tokenizer: Any) -> str:
    """SHA-256 (hex) over weights with their dtype, configuration and tokenizer.

    Equal for a model that was changed in nothing that changes a key, a value or a token. Stored memories are found by
    it, so what it gives for a model must stay the same from version to version.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    digest.update(json.dumps(_settings(model), sort_keys=True, default=str).encode())
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(_tokenizer(getattr(tokenizer, "backend_tokenizer", None)).encode())
    return digest.hexdigest()


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    """The configuration without IRRELEVANT fields and without defaults of fields that newer libraries brought."""
    settings = _relevant(model.config.to_diff_dict())
    for name in [name for name in settings if name not in _known_fields()]:
        if name in (default := _defaults(type(model.config))) and settings[name] == default[name]:
            del settings[name]
    if "output_router_logits" in settings:
        settings["output_router_logits"] = False
    if "pad_token_id" in settings:  # as it was when the model was made; what pads a batch may be set at any time
        settings["pad_token_id"] = getattr(model.get_input_embeddings(), "padding_idx", None)
    return settings


def _relevant(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _relevant(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in IRRELEVANT
    }


@cache
def _known_fields() -> frozenset[str]:
    """Fields that configurations of causal language models have in transformers 5.23 and 5.24, defaults included.

    Their values were part of every fingerprint from the first version on, so they must stay.
    """
    return frozenset((Path(__file__).parent / "config_fields.txt").read_text(encoding="utf-8").split())


@cache
def _defaults(cls: type) -> dict[str, Any]:
    try:
        return cls().to_dict()
    except (TypeError, ValueError):  # it has no defaults
        return {}


def _tokenizer(backend: Any) -> str:
    """A fast tokenizer as JSON, without the padding and truncation that its last call left; empty without one."""
    if backend is None:
        return ""
    if backend.padding is not None or backend.truncation is not None:
        backend = copy.deepcopy(backend)
        backend.no_padding()
        backend.no_truncation()
    return backend.to_str()
