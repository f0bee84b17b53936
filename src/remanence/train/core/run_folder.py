"""`run.json` and `curves.png` in the folder of a run: how each stage was made, and the curves of its log."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from remanence.errors import InputError, RemanenceError
from remanence.files import write_whole
from remanence.provenance import commit, machine
from remanence.train.core import curves, parallel
from remanence.train.core.loop import Run

ABOUT = "run.json"
CURVES = "curves.png"


def begin_stage(run: Run, stage: str, recipe: Any, *, resumed: bool = False) -> None:
    """Adds an entry to `run.json`: the stage, all fields of its recipe, the data files, the commit and the machine.

    `recipe`: a dataclass with a `seed`. InputError if the file that is there cannot be read.
    """
    if parallel.rank():
        return
    entry = {
        "stage": stage,
        "again": resumed,
        "given_weights": run.has_start,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "processes": parallel.size(),
        "seed": recipe.seed,
        "data": dict(run.data_files),
        "recipe": asdict(recipe),
    }
    text = json.dumps([*entries(run.folder), entry], indent=1)
    write_whole(run.folder / ABOUT, f"{text}\n".encode())


def entries(folder: Path) -> list[dict[str, Any]]:
    """The entries of `folder/run.json`, oldest first; an empty list if there is no such file."""
    path = folder / ABOUT
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ValueError("it is not a list of objects")
        return content
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}", "move it away; the log does not need it") from error


def end_stage(run: Run, stage: str) -> None:
    """Draws `curves.png` again. If that fails, the log says why and the run goes on."""
    if parallel.rank():
        return
    try:
        curves.draw_all(run.folder / "log.jsonl", run.folder / CURVES)
    except (RemanenceError, OSError) as error:
        run.log({"stage": stage, "note": f"no curves were drawn: {error}"})
