"""Writes what a run of M+ has trained as an adapter folder that `load` reads: PEFT's files and `latent.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from remanence.lm.folders import LATENT, SETTINGS
from remanence.lm.lora import ROLES, save_adapter
from remanence.train.card import write_card
from remanence.train.latent_run import MPlusRun


def export_latent(run: MPlusRun, folder: Path, base: str) -> int:
    """Both adapters, projectors, first vectors and a first pool in bfloat16; returns the bytes of all files."""
    for role in ROLES:
        save_adapter(run.lm.model, role, folder / role, run.recipe.lora, base, torch.bfloat16)
    state = {**run.method.modules(run.lm).state_dict(), "pool_LNC": run.pool.row_LNC}
    tensors = {name: tensor.detach().cpu().bfloat16().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / LATENT, metadata={"format": "pt"})
    mplus = run.recipe.method | run.recipe.reading
    settings = {"adapter": {"base": base}, "mplus": mplus}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_card(folder, run, run.recipe, {"method": "mplus", "base": base, **mplus}, ("latent-memory", "adapter"))
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
