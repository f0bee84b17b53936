"""What a run leaves in its folder beside log and checkpoints: what it was made by, and its curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from remanence.errors import InputError, RemanenceError
from remanence.files import write_whole
from remanence.provenance import commit, machine
from remanence.train import curves, parallel
from remanence.train.corpora import corpus_files
from remanence.train.loop import Run

ABOUT = "run.json"
CURVES = "curves.png"


def stage_begins(
    run: Run, stage: str, recipe: Any, *, again: bool = False, files: Mapping[str, int] | None = None
) -> None:
    """One entry more in `run.json`: the stage (`again`: gone on with), every field of its recipe, and where it runs.

    It names the files that are read, with their bytes: `files`, or (None) the corpora of the data folder. InputError
    where what is there cannot be read.
    """
    if parallel.rank():
        return
    if files is None:
        corpora = corpus_files(run.data) if run.data else []
        files = {path.relative_to(run.data or "").as_posix(): path.stat().st_size for path in corpora}
    entry = {
        "stage": stage,
        "again": again,
        "given_weights": bool(getattr(run, "has_start", False)),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "processes": parallel.size(),
        "seed": recipe.seed,
        "data": dict(files),
        "recipe": asdict(recipe),
    }
    told = json.dumps([*entries(run.folder), entry], indent=1)
    write_whole(run.folder / ABOUT, f"{told}\n".encode())


def entries(folder: Path) -> list[dict[str, Any]]:
    """Of every stage that was begun or gone on with in `folder`, oldest first; none where nothing was."""
    path = folder / ABOUT
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise ValueError("it is not a list of objects")
        return found
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}", "move it away; the log does not need it") from error


def stage_ends(run: Run, stage: str) -> None:
    """Draws `curves.png` anew; where that cannot be done the log says why, which costs no run."""
    if parallel.rank():
        return
    try:
        curves.draw_all(run.folder / "log.jsonl", run.folder / CURVES)
    except (RemanenceError, OSError) as error:
        run.log({"stage": stage, "note": f"no curves were drawn: {error}"})
