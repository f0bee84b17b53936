"""Checkpoints as safetensors and JSON in one folder, replaced in one step so that a crash leaves a whole one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence.errors import InputError


@dataclass(frozen=True)
class Checkpoint:
    """Weights, optimizer state, and where the run stands (`progress`: numbers and words)."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]


def log(folder: Path, record: dict[str, Any]) -> None:
    """One line more in `log.jsonl`, and on the screen."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record), flush=True)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `folder` anew; the old one stays whole until the new one is complete on disk."""
    fresh, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({k: v.contiguous().cpu() for k, v in checkpoint.weights.items()}, fresh / "weights.safetensors")
    save_file({k: v.contiguous().cpu() for k, v in checkpoint.optimizer.items()}, fresh / "optimizer.safetensors")
    (fresh / "progress.json").write_text(json.dumps(checkpoint.progress, indent=1), encoding="utf-8")
    for path in fresh.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> Checkpoint:
    """The newest whole checkpoint: `folder`, or what a crash left beside it. InputError where there is none."""
    for place in (folder, folder.with_suffix(".old")):
        if (place / "progress.json").exists():
            try:
                progress = json.loads((place / "progress.json").read_text(encoding="utf-8"))
                tensors = [load_file(place / f"{name}.safetensors") for name in ("weights", "optimizer")]
                return Checkpoint(tensors[0], tensors[1], progress)
            except (OSError, ValueError, SafetensorError) as error:
                raise InputError(f"checkpoint {str(place)!r} is damaged: {error}", "start without --resume") from error
    raise InputError(f"no checkpoint in {str(folder)!r}", "start without --resume")
