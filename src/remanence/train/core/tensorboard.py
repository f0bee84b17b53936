"""Writes the log of a run for TensorBoard: figures as scalars, example answers as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from remanence.errors import MissingExtra

FOLDER = "tensorboard"


@contextmanager
def tensorboard(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A sink for `Run.log_sinks` that writes to `folder/tensorboard` while the block runs.

    Each stage is a run of TensorBoard, so that the curves of `continual` and `control` can be compared. Steps that are
    trained again, after a restart or a divergence, replace the older ones. MissingExtra without tensorboard.
    """
    writer_of = _writers()
    opened: dict[str, Any] = {}

    def write(record: dict[str, Any]) -> None:
        stage, step = record["stage"], record.get("step", 0)
        if stage not in opened:
            opened[stage] = writer_of(str(folder / FOLDER / stage), purge_step=step)
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                opened[stage].add_scalar(name, value, step)
        if samples := record.get("samples"):
            opened[stage].add_text("samples", "\n\n".join(map(_markdown, samples)), step)
        opened[stage].flush()
        if "went_back_to" in record:
            opened.pop(stage).close()

    try:
        yield write
    finally:
        for writer in opened.values():
            writer.close()


def _writers() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", "train", "--tensorboard") from error
    return SummaryWriter


def _markdown(sample: dict[str, str]) -> str:
    return f"{sample['question']} **{sample['answer']}** ({sample['gold']})"
