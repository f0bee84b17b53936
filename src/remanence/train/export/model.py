"""Writes a trained model as a folder that Hugging Face and remanence load: bfloat16 weights, tokenizer, search head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from remanence.train.core.model import build_model
from remanence.train.core.shapes import Shape
from remanence.train.export.search_head import Head


def export(
    folder: Path,
    shape: Shape,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    head: Head | None,
    stop: Sequence[str] = ("\n",),
) -> None:
    """Writes `weights` (float32, by name) of a model of `shape`. Other files in `folder`, such as a README, stay.

    `head` None: no search head. `stop`: strings that end an answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(shape, 0)
    model.load_state_dict(weights, strict=False)
    model.to(torch.bfloat16)
    ids: Any = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids, stop_strings=list(stop) or None, do_sample=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if head is not None:
        save_file({"weight": head.weight_EC.contiguous().cpu()}, folder / "embedder.safetensors")
        about = {
            "layer": head.layer,
            "dim": len(head.weight_EC),
            "recall_at_1": head.recall1,
            "recall_at_5": head.recall5,
        }
        (folder / "embedder.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
