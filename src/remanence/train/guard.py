"""Watches the loss of a run: a spike that stays, or a number that is none, means going back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from remanence.errors import InputError

SPREAD = 1.4826
"""The median distance from the median, times this, is the standard deviation of a normal distribution."""


@dataclass(frozen=True)
class GuardConfig:
    """A loss is high when it is above the median of the last `window` by `nats` and by `deviations` of their spread.

    `patience` high losses in a row are a divergence, one that is not finite is one at once. Then the run goes back to
    its last good checkpoint, leaves out what it has read since, and multiplies its rates by `lower`; after `rewinds`
    of them it gives up. The paper went back to a checkpoint by hand, with a smaller rate (Memory³ §5.2).
    """

    window: int = 64
    nats: float = 1.0
    deviations: float = 6.0
    patience: int = 8
    rewinds: int = 5
    lower: float = 0.5

    def __post_init__(self) -> None:
        check_counts(self, "window", "patience")
        if not 0 < self.lower <= 1:
            raise InputError(f"guard.lower is {self.lower}", "give a part of the rates, above 0 and up to 1")


def check_counts(given: Any, *names: str) -> None:
    """InputError for a field that counts something and is below 1."""
    for name in names:
        if getattr(given, name) < 1:
            raise InputError(f"{name} is {getattr(given, name)}", "use 1 or more")


@dataclass(frozen=True)
class Watched:
    """The last calm losses, and how many high ones have come since."""

    calm: tuple[float, ...] = ()
    high: int = 0

    @property
    def is_calm(self) -> bool:
        return self.high == 0


def judge(config: GuardConfig, watched: Watched, loss: float, norm: float) -> tuple[Watched, str | None]:
    """What is known after one step, and why it is a divergence (None: it is not)."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        return watched, what
    if len(watched.calm) < max(1, config.window // 2) or loss <= _limit(config, watched.calm):
        return Watched((*watched.calm, loss)[-config.window :]), None
    high = watched.high + 1
    reason = None
    if high >= config.patience:
        reason = f"{high} losses in a row above {_limit(config, watched.calm):.3f}, the last {loss:.3f}"
    return Watched(watched.calm, high), reason


def _limit(config: GuardConfig, calm: Sequence[float]) -> float:
    middle = median(calm)
    spread = SPREAD * median(abs(loss - middle) for loss in calm)
    return middle + max(config.nats, config.deviations * spread)
