"""The last two checkpoints of a stage: torch's distributed checkpoint in safetensors files, each whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from remanence.errors import InputError
from remanence.train import parallel

PARTS = ("weights", "optimizer", "tensors")


@dataclass(frozen=True)
class Checkpoint:
    """Weights, optimizer state, where the run stands (`progress`: what JSON can hold), and what else a task keeps."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


Sink = Callable[[dict[str, Any]], None]
"""What is told every record of a log."""


def show(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def log(folder: Path, record: dict[str, Any], sinks: Sequence[Sink] = (show,)) -> None:
    """One line more in `log.jsonl`, and on the screen or wherever else it is told; by the first process alone."""
    if parallel.rank():
        return
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    for sink in sinks:
        sink(record)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `folder` anew, every process its own shards; the one before is kept too."""
    fresh = folder.with_suffix(".new")
    if not parallel.rank():
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    parallel.wait()
    state = {f"{part}/{name}": t for part in PARTS for name, t in getattr(checkpoint, part).items()}
    try:
        with _quiet():
            writer = dcp.HuggingFaceStorageWriter(str(fresh), save_distributed=True)
            dcp.save(state, storage_writer=writer, no_dist=not dist.is_initialized())
        if not parallel.rank():
            (fresh / "progress.json").write_text(json.dumps(checkpoint.progress, indent=1), encoding="utf-8")
            _replace(folder, fresh)
    except (OSError, CheckpointException, SafetensorError) as error:
        raise InputError(
            f"the checkpoint {str(folder)!r} could not be written: {_first_line(error)}",
            "make room on the disk and --resume: the one before it is whole",
        ) from error
    parallel.wait()


def before(folder: Path) -> Path:
    """Where the checkpoint that `folder` replaced is kept."""
    return folder.with_suffix(".before")


def exists(folder: Path) -> bool:
    """Whether there is something to go on from: `folder`, or what a crash left of it."""
    return any((place / "progress.json").exists() for place in (folder, before(folder)))


def clear(folder: Path) -> None:
    """What an earlier run left goes, so that this one never goes back to it."""
    if not parallel.rank():
        for place in (folder, before(folder)):
            shutil.rmtree(place, ignore_errors=True)
    parallel.wait()


def drop_newest(folder: Path) -> None:
    """The one before it takes its place, where there is one."""
    if not parallel.rank() and before(folder).exists():
        shutil.rmtree(folder, ignore_errors=True)
        before(folder).rename(folder)
    parallel.wait()


def _replace(folder: Path, fresh: Path) -> None:
    for path in fresh.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        shutil.rmtree(before(folder), ignore_errors=True)
        folder.rename(before(folder))
    fresh.rename(folder)


def load(folder: Path, masters: Mapping[str, Tensor] | None = None) -> Checkpoint:
    """The newest whole checkpoint: `folder`, or what a crash left beside it. InputError where there is none.

    `masters`: weights as this process holds them; those of the same name, and what the optimizer keeps for them, are
    read as they are sharded. One that is damaged is passed over for the one before it, with a warning.
    """
    damage: list[InputError] = []
    for place in (folder, before(folder)):
        if (place / "progress.json").exists():
            try:
                progress = json.loads((place / "progress.json").read_text(encoding="utf-8"))
                found: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
                for key, tensor in _tensors(place, masters or {}).items():
                    part, _, name = key.partition("/")
                    found[part][name] = tensor
                if damage:
                    warnings.warn(f"{damage[0].message}; the one before it is taken", stacklevel=2)
                return Checkpoint(found["weights"], found["optimizer"], progress, found["tensors"])
            except (OSError, ValueError, KeyError, SafetensorError, CheckpointException) as error:
                problem = f"checkpoint {str(place)!r} is damaged: {_first_line(error)}"
                damage.append(InputError(problem, "start without --resume"))
    if damage:
        raise damage[0]
    raise InputError(f"no checkpoint in {str(folder)!r}", "start without --resume")


def _tensors(place: Path, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    reader = dcp.HuggingFaceStorageReader(str(place))
    held = {}
    for key, told in reader.read_metadata().state_dict_metadata.items():
        like = masters.get(_weight(key))
        is_alike = like is not None and like.shape == told.size
        dtype = told.properties.dtype
        held[key] = torch.empty_like(like, dtype=dtype) if is_alike else torch.empty(told.size, dtype=dtype)
    with _quiet():
        dcp.load(held, storage_reader=reader, no_dist=not dist.is_initialized())
    return held


def _weight(key: str) -> str:
    """The name of the weight that an entry is of, or is kept for: `weights/NAME`, `optimizer/PART/NAME/ENTRY`."""
    part, _, name = key.partition("/")
    return name.partition("/")[2].rpartition("/")[0] if part == "optimizer" else name


def _first_line(error: BaseException) -> str:
    """Of what went wrong in the first process where something did."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return (str(error) or repr(error)).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
