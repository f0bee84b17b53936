"""The one shape that every bench prints: figures by system, and the ratios that matter."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from remanence.provenance import commit, machine

__all__ = ["commit", "machine", "medians", "result"]

Figures = Mapping[str, float | int | None]


def result(
    bench: str, results: Mapping[str, Figures], ratios: Mapping[str, float], **conditions: Any
) -> dict[str, Any]:
    """`conditions` are what was measured under what (sizes, counts, model); units are in the figures' names."""
    return {
        "bench": bench,
        "commit": commit(),
        "machine": machine(),
        "conditions": conditions,
        "results": {system: dict(figures) for system, figures in results.items()},
        "ratios": dict(ratios),
    }


def medians(repeats: Sequence[Figures]) -> dict[str, float | int | None]:
    """Each figure's median over all repeats; None where it was not measured in one of them."""
    values = {name: [figures[name] for figures in repeats] for name in repeats[0]}
    return {
        name: None if any(value is None for value in column) else statistics.median(column)  # type: ignore[type-var]
        for name, column in values.items()
    }
