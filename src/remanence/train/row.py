"""One row of a training batch, as texts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Row:
    """Texts before they become tokens: references, then (question, answer) pairs.

    `places[i]`: which reference answers pair i. `plain` is a row without structure: a stretch of text that is
    learned as it stands; `ids` a ready row.
    """

    references: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    plain: str = ""
    ids: list[int] = field(default_factory=list)
