"""What a task is: passages for the bank, and questions with their right answers."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar


@dataclass(frozen=True)
class Item:
    """A question, every answer that is right, and the index of the passage that holds it.

    `passage` None: none of the bank does, and the only right answer is that there is none.
    """

    question: str
    answers: tuple[str, ...]
    passage: int | None


@dataclass(frozen=True)
class Exam:
    """`passages` go into the bank in this order; `notes` are counts that belong beside the figures."""

    passages: tuple[str, ...]
    items: tuple[Item, ...]
    notes: Mapping[str, int] = field(default_factory=dict)


class Task(ABC):
    """A frozen dataclass of settings; its fields (metadata: "help") are the options of `remanence eval NAME`."""

    name: ClassVar[str]
    headline: ClassVar[str]
    """The figure that the ratio to `retrieved_text` is made of."""
    own_context: ClassVar[bool] = False
    """True: full_context is given the question's own passage, not as much of the bank as fits."""

    @abstractmethod
    def exam(self, n: int, seed: int) -> Exam:
        """At most `n` questions; the same seed gives the same exam. InputError where a file cannot be used."""


def shuffled(passages: Sequence[str], items: Sequence[Item], seed: int) -> tuple[tuple[str, ...], tuple[Item, ...]]:
    """Passages in an order that says nothing about which of them are asked for; items follow theirs."""
    order = list(range(len(passages)))
    Random(f"order {seed}").shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    moved = tuple(
        item if item.passage is None else dataclasses.replace(item, passage=place[item.passage]) for item in items
    )
    return tuple(passages[old] for old in order), moved
