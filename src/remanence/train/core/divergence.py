"""Detects a divergence: a loss that stays far above its recent values, or a loss or gradient that is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from remanence.errors import InputError, check_counts

SPREAD = 1.4826
"""Ratio of the standard deviation of a normal distribution to its median absolute deviation."""


@dataclass(frozen=True)
class GuardConfig:
    """When a loss counts as high, and what a run does about a divergence.

    A loss is high if it exceeds the median of the last `window` calm losses by `nats` and by `deviations` times their
    spread. `patience` high losses in a row are a divergence; one loss that is not finite is a divergence at once. The
    run then returns to its last good checkpoint, skips the batches since then, and multiplies its learning rates by
    `lower`. After `rewinds` returns it stops. Source: Memory³ §5.2, where the authors did this by hand.
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
            raise InputError(f"guard.lower is {self.lower}", "use a factor above 0 and at most 1")


@dataclass(frozen=True)
class LossHistory:
    """`calm`: the last losses that were not high, in nats per token. `high`: the number of high losses since then."""

    calm: tuple[float, ...] = ()
    high: int = 0

    @property
    def is_calm(self) -> bool:
        return self.high == 0


def judge(config: GuardConfig, history: LossHistory, loss: float, norm: float) -> tuple[LossHistory, str | None]:
    """The history after one step, and the reason for a divergence (None: there is none).

    `loss` is in nats per token; `norm` is the norm of the gradient before clipping.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        reason = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        return history, reason
    if len(history.calm) < max(1, config.window // 2) or loss <= _limit(config, history.calm):
        return LossHistory((*history.calm, loss)[-config.window :]), None
    high = history.high + 1
    reason = None
    if high >= config.patience:
        reason = f"{high} losses in a row above {_limit(config, history.calm):.3f}, the last {loss:.3f}"
    return LossHistory(history.calm, high), reason


def _limit(config: GuardConfig, calm: Sequence[float]) -> float:
    middle = median(calm)
    spread = SPREAD * median(abs(loss - middle) for loss in calm)
    return middle + max(config.nats, config.deviations * spread)
