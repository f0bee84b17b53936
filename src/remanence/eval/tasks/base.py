"""The interface of an evaluation task: passages for the bank, and questions with their right answers."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar


@dataclass(frozen=True)
class Example:
    """A question, all of its right answers, and the index of the passage that contains them.

    `passage` None: no passage contains one, and the right answer is that it is not known.
    """

    question: str
    answers: tuple[str, ...]
    passage: int | None


@dataclass(frozen=True)
class EvalSet:
    """`passages` go into the bank in this order. `notes`: counts that are reported beside the figures."""

    passages: tuple[str, ...]
    examples: tuple[Example, ...]
    notes: Mapping[str, int] = field(default_factory=dict)


class Task(ABC):
    """A frozen dataclass of settings. Its fields (metadata: "help") are the options of `remanence eval NAME`."""

    name: ClassVar[str]
    headline: ClassVar[str]
    """The figure whose ratio to `retrieved_text` is reported."""
    own_context: ClassVar[bool] = False
    """True: full_context reads the question's own passage, instead of as much of the bank as fits."""

    @abstractmethod
    def eval_set(self, n: int, seed: int) -> EvalSet:
        """At most `n` questions. The same seed gives the same set. InputError if a file cannot be used."""


def shuffled(
    passages: Sequence[str], examples: Sequence[Example], seed: int
) -> tuple[tuple[str, ...], tuple[Example, ...]]:
    """Passages in random order, so that their places say nothing about the questions; and the examples for them."""
    order = list(range(len(passages)))
    Random(f"order {seed}").shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    moved = tuple(
        each if each.passage is None else dataclasses.replace(each, passage=place[each.passage]) for each in examples
    )
    return tuple(passages[old] for old in order), moved
