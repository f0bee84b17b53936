"""How the learning rate goes over a run: multipliers of a recipe's rates."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "wsd", "cosine", "tenth"]
FLOOR = 0.02


def rate_at(schedule: Schedule, step: int, num_steps: int, warmup_steps: int, decay_share: float) -> float:
    """In (0, 1]: every schedule rises linearly over `warmup_steps`.

    "wsd" (warm-up, stable, decay: Memory³ §5.1) falls linearly over the last `decay_share` of the steps, "cosine"
    over all that follow (Memory³ §6.1); neither falls below `FLOOR`. "tenth" falls linearly to a tenth over the first
    `decay_share` of the steps, and stays there (M+, stage 1 of the authors' code).
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
