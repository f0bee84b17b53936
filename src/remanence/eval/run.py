"""Sits an exam: passages into one bank, every question to every system, answers compared with the right ones."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remanence.bank import Bank
from remanence.data.unknown import abstains
from remanence.errors import InputError
from remanence.eval.metrics import best, exact_match, f1, normalise
from remanence.eval.systems import PLAIN, TEXT, System, make_systems
from remanence.eval.tasks.base import Exam, Item, Task
from remanence.lm.lm import LM
from remanence.text.formats import Document
from remanence.types import Reply

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what is being done, steps) -> a block whose value is called with the number of steps done."""


@dataclass(frozen=True)
class Options:
    """How an exam is sat. Answers end at `max_tokens` or at the end of their first line; they are greedy."""

    systems: tuple[str, ...]
    n: int = 500
    seed: int = 0
    batch_size: int = 16
    max_tokens: int = 32

    def __post_init__(self) -> None:
        for name in ("n", "batch_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name.replace('_', ' ')} is {getattr(self, name)}", "use 1 or more")


@dataclass(frozen=True)
class Sat:
    """What came of an exam: per system, the reply to every item and the seconds that all of them took."""

    exam: Exam
    systems: tuple[System, ...]
    replies: Mapping[str, Sequence[Reply]]
    seconds: Mapping[str, float]
    written: Mapping[str, float]


def sit(lm: LM, task: Task, options: Options, bar: Bar = lambda label, total: nullcontext(lambda steps: None)) -> Sat:
    """Every system asks the same questions of the same bank; systems that recall share one retriever."""
    exam = task.exam(options.n, options.seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Bank.open(Path(folder) / "bank") as bank:
        systems = make_systems(lm, bank, options.systems, task, exam, options.max_tokens)
        written = _write(systems, exam, bar)
        replies, seconds = {}, {}
        for system in systems:
            begun = time.monotonic()
            with bar(f"Asking {system.name}", len(exam.items)) as advance:
                replies[system.name] = _ask(system, exam.items, options, advance)
            seconds[system.name] = time.monotonic() - begun
    check_same_hits(lm, systems, exam, replies, options)
    return Sat(exam, tuple(systems), replies, seconds, written)


def _write(systems: Sequence[System], exam: Exam, bar: Bar) -> dict[str, float]:
    """Texts once, each with its place in the exam as its source; then the memories of every method that keeps any."""
    begun = time.monotonic()
    passages = [Document(text, source=str(index)) for index, text in enumerate(exam.passages)]
    with bar("Writing passages", len(passages)) as advance:
        receipt = systems[0].session.write_documents(passages, warm=False, on_progress=advance)
    for system in systems:
        if system.session.method.writes_tensors:
            with bar(f"Writing memories of {system.name}", receipt.num_chunks) as advance:
                system.session.migrate(advance)
    return {"chunks": len(set(receipt.ids)), "write_seconds": time.monotonic() - begun}


def _ask(system: System, items: Sequence[Item], options: Options, advance: Callable[[int], None]) -> list[Reply]:
    """Replies in the order of `items`; questions of like length are asked together."""
    order = sorted(range(len(items)), key=lambda i: len(items[i].question))
    replies: dict[int, Reply] = {}
    for start in range(0, len(order), options.batch_size):
        batch = order[start : start + options.batch_size]
        questions = [items[i].question for i in batch]
        answered = system.session.generate_batch(
            questions, max_tokens=options.max_tokens, stop=("\n",), recall=system.recall
        )
        replies |= zip(batch, answered, strict=True)
        advance(len(batch))
    return [replies[i] for i in range(len(items))]


def check_same_hits(
    lm: LM, systems: Sequence[System], exam: Exam, replies: Mapping[str, Sequence[Reply]], options: Options
) -> None:
    """AssertionError where two systems recalled differently for one and the same query.

    A question longer than a chunk is searched for chunk by chunk by some methods and once by others.
    """
    recalling = [system for system in systems if system.recall and system.limit is not None]
    chunk = min((getattr(s.session.method.config, "chunk_tokens", 64) for s in recalling), default=64)
    if options.max_tokens > chunk or len({system.limit for system in recalling}) > 1:
        return
    for i, item in enumerate(exam.items):
        prompt = lm.render([{"role": "user", "content": item.question}])
        if len(prompt) <= chunk + len(lm.bos):
            found = {frozenset(recall.id for recall in replies[system.name][i].recalled) for system in recalling}
            assert len(found) <= 1, f"systems recalled differently for {item.question!r}"


# -- figures -------------------------------------------------------------------------------------------------


def figures(sat: Sat) -> dict[str, dict[str, Any]]:
    """Per system: exact_match, f1, n, seconds, and what was recalled, as means over the questions with an answer.

    Where some have none: `answered`, the share of those with one that got an answer, right or wrong, and `abstained`,
    the share of the others that got none.
    """
    return {system.name: _figures(sat, system) for system in sat.systems}


def _figures(sat: Sat, system: System) -> dict[str, Any]:
    told = list(zip(sat.exam.items, sat.replies[system.name], strict=True))
    rows = [score(item, reply) for item, reply in told if item.passage is not None]
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    made = {"exact_match": mean["exact_match"], "f1": mean["f1"], "n": len(rows), "seconds": sat.seconds[system.name]}
    if silent := [abstains(reply.text) for item, reply in told if item.passage is None]:
        answered = [not abstains(reply.text) for item, reply in told if item.passage is not None]
        made |= {"answered": sum(answered) / len(answered), "abstained": sum(silent) / len(silent)}
    if any(reply.recalled for reply in sat.replies[system.name]):
        found = "passage_in_context" if system.limit is None else f"recall_at_{system.limit}"
        made |= {found: mean["passage_recalled"], "answer_in_recalled": mean["answer_recalled"]}
        made["recalled_chunks"] = mean["recalled_chunks"]
    return made | {"prompt_tokens": mean["prompt_tokens"], "memory_tokens": mean["memory_tokens"]}


def score(item: Item, reply: Reply) -> dict[str, float]:
    """One answer's figures; `answer_recalled`: a right answer stands in what was recalled."""
    texts = [f" {normalise(recall.text)} " for recall in reply.recalled]
    return {
        "exact_match": best(exact_match, reply.text, item.answers),
        "f1": best(f1, reply.text, item.answers),
        "passage_recalled": float(any(recall.source == str(item.passage) for recall in reply.recalled)),
        "answer_recalled": float(any(f" {normalise(a)} " in text for text in texts for a in item.answers)),
        "recalled_chunks": float(len(reply.recalled)),
        "prompt_tokens": float(reply.usage.prompt_tokens),
        "memory_tokens": float(reply.usage.memory_tokens),
    }


def ratios(by_system: Mapping[str, Mapping[str, Any]], headline: str) -> dict[str, float]:
    """Each method's headline figure over that of the same references as text."""
    base = by_system.get(TEXT, {}).get(headline)
    if not base:
        return {}
    others = [name for name in by_system if name not in (PLAIN, TEXT)]
    return {f"{headline}_{name}_over_{TEXT}": by_system[name][headline] / base for name in others}
