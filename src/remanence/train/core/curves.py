"""Reads the log of a run and draws its curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from remanence.errors import InputError, MissingExtra


def read_log(path: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """stage -> step -> record. If a step was trained twice, after a restart, the later record counts.

    InputError if the file cannot be read. An incomplete last line, of a run that was killed, is ignored.
    """
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"cannot read the log {str(path)!r}: {error.strerror}", "train first, or name the folder of the run"
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise InputError(f"{str(path)!r} line {number} is not JSON", "remove the line") from error
        if "step" in record:
            stages.setdefault(record["stage"], {}).setdefault(record["step"], {}).update(record)
    return stages


TITLES = ("training, nats per token", "evaluation, nats per token", "share of exact answers")
STYLES = ("-", "--", ":", "-.")


def _panel_of(name: str) -> int | None:
    """The index into `TITLES` of a figure in the log; None: it is not drawn."""
    if name in ("loss_answer", "loss_text") or name.endswith("_answer"):
        return 0
    if name.endswith("_exact") or name.startswith(("answered_", "abstained_")):
        return 2
    return 1 if (name.startswith("loss_") and name != "loss_hints") or name.endswith("_loss") else None


def draw_all(log: Path, picture: Path) -> None:
    """Writes a PNG with the losses and exact answers of all stages, one colour per stage."""
    figure, panels = axes_of(len(TITLES))
    for number, (stage, records) in enumerate(read_log(log).items()):
        names = dict.fromkeys(name for record in records.values() for name in record)
        for place, axes in enumerate(panels):
            for line, name in enumerate(name for name in names if _panel_of(name) == place):
                points = [(step, record[name]) for step, record in sorted(records.items()) if name in record]
                style = STYLES[line % len(STYLES)]
                axes.plot(*zip(*points, strict=True), style, color=f"C{number}", linewidth=1, label=f"{stage} {name}")
    for axes, title in zip(panels, TITLES, strict=True):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("step of the stage")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="xx-small")
        axes.set_visible(bool(axes.lines))
    figure.savefig(picture, dpi=110)


def draw(log: Path, picture: Path) -> None:
    """Writes a PNG with the loss on answers (nats per token) over steps, the stages one after the other."""
    figure, axes = axes_of()
    start = 0
    for stage, colour in (("warmup", "tab:gray"), ("continual", "tab:blue"), ("control", "tab:orange")):
        records = read_log(log).get(stage, {})
        points = [(step, record["loss_answer"]) for step, record in sorted(records.items()) if "loss_answer" in record]
        if not points:
            continue
        axes.plot([start + step for step, _ in points], [loss for _, loss in points], color=colour, label=stage)
        if stage == "warmup":
            start = points[-1][0]
    if start:
        axes.axvline(start, color="tab:red", linewidth=0.6)
        axes.annotate("memory from here", (start, axes.get_ylim()[1]), rotation=90, va="top")
    axes.set_xlabel("step")
    axes.set_ylabel("loss on answers (nats per token)")
    axes.legend(loc="upper right")
    figure.savefig(picture, dpi=110)


def axes_of(columns: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "train", "drawing curves") from error
    figure = Figure(figsize=(9, 4), layout="constrained")
    return figure, figure.subplots(1, columns)
