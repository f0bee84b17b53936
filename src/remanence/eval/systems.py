"""The systems that an exam is sat by: one bank, one retriever, and a method each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remanence import methods
from remanence.bank import Bank
from remanence.errors import InputError
from remanence.eval.tasks.base import Exam, Task
from remanence.lm.lm import LM
from remanence.methods.base import MemorySource, Method, Prompt, Reading, text_layout
from remanence.session import Session

PLAIN = "plain"
FULL = "full_context"
TEXT = "retrieved_text"


@dataclass(frozen=True)
class System:
    """`recall` False is the plain model; `limit` is how many memories are recalled at once, None where all that fit."""

    name: str
    session: Session
    recall: bool
    limit: int | None


@dataclass(frozen=True)
class OwnContextConfig:
    """`reserved_tokens` of the model's positions are kept free for the answer."""

    reserved_tokens: int


class OwnContext(Method):
    """Each question's own passage as text in front of it, its end cut where the model has no room for it."""

    # no `name`: this is no method to be chosen by name, so it stays out of the registry
    writes_tensors = False

    def __init__(self, passages: Mapping[str, str], config: OwnContextConfig) -> None:
        super().__init__(config)
        self.passages = passages

    def read(self, lm: LM, memory_source: MemorySource, prompts: Sequence[Prompt]) -> Reading:
        rows = tuple(self._layout(lm, prompt) for prompt in prompts)
        return Reading(rows, None, None, tuple(((0, ()),) for _ in prompts))

    def _layout(self, lm: LM, prompt: Prompt) -> tuple[int, ...]:
        text, limit = self.passages[prompt.question], lm.dims.max_positions - self.config.reserved_tokens
        ids = text_layout(lm, [text], prompt.ids)
        return ids if len(ids) <= limit else (*ids[: limit - len(prompt.ids)], *prompt.ids)


def make_systems(lm: LM, bank: Bank, names: Sequence[str], task: Task, exam: Exam, max_tokens: int) -> list[System]:
    """One system per name: "plain" or a method, which may name its preset ("memory3:dense")."""
    if not names or len(set(names)) != len(names):
        raise InputError(f"systems are {', '.join(names) or 'none'}", "name each once, e.g. plain,memory3")
    systems: list[System] = []
    for name in names:
        session = Session(lm, bank, _method(lm, name, task, exam, max_tokens))
        if systems:
            session.retriever = systems[0].session.retriever
        systems.append(System(name, session, name != PLAIN, _limit(session.method)))
    return systems


def _method(lm: LM, name: str, task: Task, exam: Exam, max_tokens: int) -> Method:
    if name == FULL and task.own_context:
        passages = {item.question: exam.passages[item.passage] for item in exam.items if item.passage is not None}
        return OwnContext(passages, OwnContextConfig(reserved_tokens=max_tokens))
    return methods.load(TEXT if name == PLAIN else name, lm)


def _limit(method: Method) -> int | None:
    config: Any = method.config
    return getattr(config, "num_memories", getattr(config, "num_references", None))
