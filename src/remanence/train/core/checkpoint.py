"""The last two checkpoints of a stage, in torch's distributed format (safetensors), and the lines of a run's log."""

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
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from remanence.errors import InputError
from remanence.train.core import parallel

PARTS = ("weights", "optimizer", "tensors")


@dataclass(frozen=True)
class Checkpoint:
    """Weights, optimizer state, `progress` (values that JSON can hold), and the other tensors of a task, by name."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


LogSink = Callable[[dict[str, Any]], None]
"""Receives every record of a log."""


def print_record(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def log(folder: Path, record: dict[str, Any], sinks: Sequence[LogSink] = (print_record,)) -> None:
    """Appends a record to `log.jsonl` and passes it to the sinks. Only the first process does."""
    if parallel.rank():
        return
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    for sink in sinks:
        sink(record)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Replaces `folder`, each process writing its own shards. The checkpoint before it is kept (`before`).

    InputError if it cannot be written; then the older one is whole.
    """
    fresh = folder.with_suffix(".new")
    if not parallel.rank():
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    parallel.wait()
    state = {f"{part}/{name}": t for part in PARTS for name, t in getattr(checkpoint, part).items()}
    try:
        with _quiet():
            writer = HuggingFaceStorageWriter(str(fresh), save_distributed=True)
            save_state(state, storage_writer=writer, no_dist=not dist.is_initialized())
        if not parallel.rank():
            (fresh / "progress.json").write_text(json.dumps(checkpoint.progress, indent=1), encoding="utf-8")
            _replace(folder, fresh)
    except (OSError, CheckpointException, SafetensorError) as error:
        raise InputError(
            f"the checkpoint {str(folder)!r} could not be written: {_first_line(error)}",
            "free some disk space and use --resume: the checkpoint before it is intact",
        ) from error
    parallel.wait()


def before(folder: Path) -> Path:
    """The folder of the checkpoint that `folder` replaced."""
    return folder.with_suffix(".before")


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint to continue from, in `folder` or in the one before it."""
    return any((place / "progress.json").exists() for place in (folder, before(folder)))


def clear(folder: Path) -> None:
    """Removes the checkpoints of an earlier run, so that this one never returns to them."""
    if not parallel.rank():
        for place in (folder, before(folder)):
            shutil.rmtree(place, ignore_errors=True)
    parallel.wait()


def drop_newest(folder: Path) -> None:
    """Replaces the newest checkpoint by the one before it, if there is one."""
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
    """The newest intact checkpoint of `folder`. InputError if there is none.

    `masters`: the weights of this process. Weights of the same name, and their optimizer state, are read with the same
    sharding. If the newest checkpoint is damaged, the one before it is read, with a warning.
    """
    damage: list[InputError] = []
    for place in (folder, before(folder)):
        if (place / "progress.json").exists():
            try:
                progress = json.loads((place / "progress.json").read_text(encoding="utf-8"))
                parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
                for key, tensor in _tensors(place, masters or {}).items():
                    part, _, name = key.partition("/")
                    parts[part][name] = tensor
                if damage:
                    warnings.warn(f"{damage[0].message}; the checkpoint before it is used", stacklevel=2)
                return Checkpoint(parts["weights"], parts["optimizer"], progress, parts["tensors"])
            except (OSError, ValueError, KeyError, SafetensorError, CheckpointException) as error:
                problem = f"checkpoint {str(place)!r} is damaged: {_first_line(error)}"
                damage.append(InputError(problem, "start without --resume"))
    if damage:
        raise damage[0]
    raise InputError(f"no checkpoint in {str(folder)!r}", "start without --resume")


def _tensors(place: Path, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    reader = HuggingFaceStorageReader(str(place))
    state: dict[str, Tensor] = {}
    for key, entry in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        dtype, like = entry.properties.dtype, masters.get(_weight(key))
        if like is not None and like.shape == entry.size:
            state[key] = torch.empty_like(like, dtype=dtype)
        else:
            state[key] = torch.empty(entry.size, dtype=dtype)
    with _quiet():
        load_state(dict(state), storage_reader=reader, no_dist=not dist.is_initialized())
    return state


def _weight(key: str) -> str:
    """The weight that an entry belongs to: NAME of `weights/NAME` or `optimizer/PART/NAME/ENTRY`."""
    part, _, name = key.partition("/")
    return name.partition("/")[2].rpartition("/")[0] if part == "optimizer" else name


def _first_line(error: BaseException) -> str:
    """The first line of an error; of several processes, of the first that failed."""
    failures = getattr(error, "failures", {})  # of a CheckpointException
    first = next(iter(failures.values()), (error,))[0]
    return (str(first) or repr(first)).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides torch's warning that only one process runs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
