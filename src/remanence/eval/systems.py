"""The systems that an evaluation compares: each with a method, all with one bank and one retriever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remanence import methods
from remanence.bank import Bank
from remanence.errors import InputError
from remanence.eval.tasks.base import EvalSet, Task
from remanence.lm.lm import LM
from remanence.methods.base import MemorySource, Method, Prompt, Reading, text_layout
from remanence.session import Session

PLAIN = "plain"
FULL = "full_context"
TEXT = "retrieved_text"


@dataclass(frozen=True)
class System:
    """`recall` False: the plain model. `limit`: the most memories that are recalled at once; None: all that fit."""

    name: str
    session: Session
    recall: bool
    limit: int | None


@dataclass(frozen=True)
class OwnContextConfig:
    """`reserved_tokens`: positions of the model that are reserved for the answer."""

    reserved_tokens: int


class OwnContext(Method):
    """Each question with its own passage as text, which is cut at its end if it does not fit the model."""

    # it has no `name`, so it is not in the registry of methods
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


def make_systems(
    lm: LM, bank: Bank, names: Sequence[str], task: Task, eval_set: EvalSet, max_tokens: int
) -> list[System]:
    """One system per name: "plain", or a method, maybe with its preset ("memory3:dense"). InputError for bad names."""
    if not names or len(set(names)) != len(names):
        raise InputError(f"the systems are {', '.join(names) or 'none'}", "name each once, as in plain,memory3")
    systems: list[System] = []
    for name in names:
        session = Session(lm, bank, _method(lm, name, task, eval_set, max_tokens))
        if systems:
            session.retriever = systems[0].session.retriever
        systems.append(System(name, session, name != PLAIN, _limit(session.method)))
    return systems


def _method(lm: LM, name: str, task: Task, eval_set: EvalSet, max_tokens: int) -> Method:
    if name == FULL and task.own_context:
        examples = (each for each in eval_set.examples if each.passage is not None)
        passages = {each.question: eval_set.passages[each.passage] for each in examples if each.passage is not None}
        return OwnContext(passages, OwnContextConfig(reserved_tokens=max_tokens))
    return methods.load(TEXT if name == PLAIN else name, lm)


def _limit(method: Method) -> int | None:
    config: Any = method.config
    return getattr(config, "num_memories", getattr(config, "num_references", None))
