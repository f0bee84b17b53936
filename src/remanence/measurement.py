"""What all evaluations and benchmarks share: options, progress, and the envelope of their results."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from remanence.errors import InputError, check_counts
from remanence.provenance import commit, machine

Advance = Callable[[int], None]
"""Called with the number of steps that are done."""
Bar = Callable[[str, int], AbstractContextManager[Advance]]
"""(label, number of steps) -> a block whose value is an `Advance`."""
Figures = Mapping[str, float | int | None]
"""The figures of one system. Their names end in their units."""


def no_bar(label: str, total: int) -> AbstractContextManager[Advance]:
    """Shows no progress."""
    return nullcontext(lambda steps: None)


@dataclass(frozen=True, kw_only=True)
class MeasurementOptions:
    """Options of an evaluation or a benchmark. InputError for any other integer than `seed` below 1."""

    seed: int = 0

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        check_counts(self, *(name for name, value in values.items() if type(value) is int and name != "seed"))


def envelope(
    kind: Literal["task", "bench"],
    name: str,
    systems: Mapping[str, Mapping[str, Any]] | None,
    *,
    conditions: Mapping[str, Any],
    ratios: Mapping[str, float] | None = None,
    n: int | None = None,
    seed: int | None = None,
    model: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The JSON object that an evaluation ("task") or a benchmark ("bench") prints.

    - `systems`: the figures of each system that is compared; the key is "systems" for a task, "results" for a bench.
    - `conditions`: sizes, counts, files. `ratios`: figures of one system over those of another.
    - `n`: the number of questions. `model`: the model's name. `more`: other entries.

    Commit and machine are added. Arguments that are None are left out.
    """
    compared = "systems" if kind == "task" else "results"
    entries = {
        kind: name,
        "n": n,
        "seed": seed,
        "commit": commit(),
        "machine": machine(),
        "model": model,
        "conditions": dict(conditions),
        compared: None if systems is None else {system: dict(figures) for system, figures in systems.items()},
        "ratios": None if ratios is None else dict(ratios),
    }
    return {key: value for key, value in entries.items() if value is not None} | more


def medians(repeats: Sequence[Figures]) -> dict[str, float | int | None]:
    """The median of each figure over all repeats; None if it was not measured in one of them."""
    columns = {name: [figures[name] for figures in repeats] for name in repeats[0]}
    result: dict[str, float | int | None] = {}
    for name, column in columns.items():
        values = [value for value in column if value is not None]
        result[name] = statistics.median(values) if len(values) == len(column) else None
    return result


def check_writable(path: Path) -> None:
    """InputError if the file cannot be written: before the work, rather than after it."""
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}", "choose another file") from error
