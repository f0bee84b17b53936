"""Learning-rate schedules, and the phase of a curriculum that a step belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

Schedule = Literal["constant", "wsd", "cosine", "tenth"]
FLOOR = 0.02
"""The smallest multiplier of "wsd" and "cosine"."""


class HasSteps(Protocol):
    """A phase of a curriculum: `num_steps` is its length."""

    @property
    def num_steps(self) -> int: ...


PhaseT = TypeVar("PhaseT", bound=HasSteps)


def rate_at(schedule: Schedule, step: int, num_steps: int, warmup_steps: int, decay_share: float) -> float:
    """Multiplier in (0, 1] of a recipe's learning rates at `step`. Every schedule rises linearly over `warmup_steps`.

    "constant" stays at 1. "wsd" (warm-up, stable, decay: Memory³ §5.1) falls linearly over the last `decay_share` of
    the steps. "cosine" falls over all steps after the warm-up (Memory³ §6.1). Neither falls below `FLOOR`. "tenth"
    falls linearly to 0.1 over the first `decay_share` of the steps and stays there (M+ stage 1, authors' code).
    """
    rise = (step + 1) / max(1, warmup_steps)
    if schedule == "constant":
        return min(1.0, rise)
    if schedule == "wsd":
        return min(1.0, rise, max(FLOOR, (1 - step / num_steps) / decay_share))
    if schedule == "tenth":
        return min(1.0, rise) * max(0.1, 1 - 0.9 * step / (decay_share * num_steps))
    fallen = max(0, step - warmup_steps) / max(1, num_steps - warmup_steps)
    return min(1.0, rise) * max(FLOOR, 0.5 * (1 + math.cos(math.pi * min(1.0, fallen))))


def phase_at(phases: Sequence[PhaseT], step: int) -> tuple[int, PhaseT]:
    """(index, phase) of a step. The last phase also holds all steps after its end."""
    for number, phase in enumerate(phases):
        if step < phase.num_steps:
            return number, phase
        step -= phase.num_steps
    return len(phases) - 1, phases[-1]
