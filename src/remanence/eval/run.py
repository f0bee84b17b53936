"""Runs an evaluation: passages into one bank, all questions to all systems, answers compared with the right ones."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remanence.bank import Bank
from remanence.data.unknown import abstains
from remanence.eval.metrics import best, exact_match, f1, normalise
from remanence.eval.systems import PLAIN, TEXT, System, make_systems
from remanence.eval.tasks.base import EvalSet, Example, Task
from remanence.lm.lm import LM
from remanence.measurement import Advance, Bar, MeasurementOptions, envelope, no_bar
from remanence.text.formats import Document
from remanence.types import Reply


@dataclass(frozen=True)
class Options(MeasurementOptions):
    """`n`: the most questions. Answers are greedy and end at `max_tokens`, or at the end of their first line."""

    systems: tuple[str, ...]
    n: int = 500
    batch_size: int = 16
    max_tokens: int = 32


@dataclass(frozen=True)
class EvalRun:
    """The replies of each system to all examples, and the seconds that they took.

    `written`: the number of chunks and the seconds of writing.
    """

    eval_set: EvalSet
    systems: tuple[System, ...]
    replies: Mapping[str, Sequence[Reply]]
    seconds: Mapping[str, float]
    written: Mapping[str, float]


def evaluate(lm: LM, task: Task, options: Options, bar: Bar = no_bar) -> EvalRun:
    """Asks every system the same questions about the same bank. Systems that recall share one retriever."""
    eval_set = task.eval_set(options.n, options.seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Bank.open(Path(folder) / "bank") as bank:
        systems = make_systems(lm, bank, options.systems, task, eval_set, options.max_tokens)
        written = _write(systems, eval_set, bar)
        replies, seconds = {}, {}
        for system in systems:
            start = time.monotonic()
            with bar(f"Asking {system.name}", len(eval_set.examples)) as advance:
                replies[system.name] = _ask(system, eval_set.examples, options, advance)
            seconds[system.name] = time.monotonic() - start
    check_same_hits(lm, systems, eval_set, replies, options)
    return EvalRun(eval_set, tuple(systems), replies, seconds, written)


def _write(systems: Sequence[System], eval_set: EvalSet, bar: Bar) -> dict[str, float]:
    """Writes the passages, each with its index as its source; then the memories of all methods that store some."""
    start = time.monotonic()
    passages = [Document(text, source=str(index)) for index, text in enumerate(eval_set.passages)]
    with bar("Writing passages", len(passages)) as advance:
        receipt = systems[0].session.write_documents(passages, warm=False, on_progress=advance)
    for system in systems:
        if system.session.method.writes_tensors:
            with bar(f"Writing memories of {system.name}", receipt.num_chunks) as advance:
                system.session.migrate(advance)
    return {"chunks": len(set(receipt.ids)), "write_seconds": time.monotonic() - start}


def _ask(system: System, examples: Sequence[Example], options: Options, advance: Advance) -> list[Reply]:
    """Replies in the order of `examples`. Questions of similar length are asked together."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].question))
    replies: dict[int, Reply] = {}
    for start in range(0, len(order), options.batch_size):
        batch = order[start : start + options.batch_size]
        questions = [examples[i].question for i in batch]
        answers = system.session.generate_batch(
            questions, max_tokens=options.max_tokens, stop=("\n",), recall=system.recall
        )
        replies |= zip(batch, answers, strict=True)
        advance(len(batch))
    return [replies[i] for i in range(len(examples))]


def check_same_hits(
    lm: LM, systems: Sequence[System], eval_set: EvalSet, replies: Mapping[str, Sequence[Reply]], options: Options
) -> None:
    """AssertionError if two systems recalled different chunks for the same query.

    Questions that are longer than a chunk are left out: some methods search for each of their chunks.
    """
    recalling = [system for system in systems if system.recall and system.limit is not None]
    chunk = min((getattr(s.session.method.config, "chunk_tokens", 64) for s in recalling), default=64)
    if options.max_tokens > chunk or len({system.limit for system in recalling}) > 1:
        return
    for i, example in enumerate(eval_set.examples):
        prompt = lm.render([{"role": "user", "content": example.question}])
        if len(prompt) <= chunk + len(lm.bos):
            hits = {frozenset(recall.id for recall in replies[system.name][i].recalled) for system in recalling}
            assert len(hits) <= 1, f"systems recalled differently for {example.question!r}"


# -- figures ---------------------------------------------------------------------------------


def result(lm: LM, task: Task, options: Options, run: EvalRun) -> dict[str, Any]:
    """The JSON object that the evaluation prints (`measurement.envelope`)."""
    by_system = figures(run)
    return envelope(
        "task",
        task.name,
        by_system,
        n=len(run.eval_set.examples),
        seed=options.seed,
        model=lm.name,
        conditions={**run.eval_set.notes, **run.written, "max_tokens": options.max_tokens},
        ratios=ratios(by_system, task.headline),
    )


def figures(run: EvalRun) -> dict[str, dict[str, Any]]:
    """Per system: exact_match, f1, n, seconds, and what was recalled, as means over the questions with an answer.

    If some questions have none: `answered`, the share of the others that got an answer, right or wrong, and
    `abstained`, the share of those without one that got none.
    """
    return {system.name: _figures(run, system) for system in run.systems}


def _figures(run: EvalRun, system: System) -> dict[str, Any]:
    pairs = list(zip(run.eval_set.examples, run.replies[system.name], strict=True))
    scores = [score(example, reply) for example, reply in pairs if example.passage is not None]
    mean = {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}
    means: dict[str, Any] = {"exact_match": mean["exact_match"], "f1": mean["f1"]}
    means |= {"n": len(scores), "seconds": run.seconds[system.name]}
    if abstained := [abstains(reply.text) for example, reply in pairs if example.passage is None]:
        answered = [not abstains(reply.text) for example, reply in pairs if example.passage is not None]
        means |= {"answered": sum(answered) / len(answered), "abstained": sum(abstained) / len(abstained)}
    if any(reply.recalled for reply in run.replies[system.name]):
        recall = "passage_in_context" if system.limit is None else f"recall_at_{system.limit}"
        means |= {recall: mean["passage_recalled"], "answer_in_recalled": mean["answer_recalled"]}
        means["recalled_chunks"] = mean["recalled_chunks"]
    return means | {"prompt_tokens": mean["prompt_tokens"], "memory_tokens": mean["memory_tokens"]}


def score(example: Example, reply: Reply) -> dict[str, float]:
    """The figures of one answer. `answer_recalled`: whether what was recalled contains a right answer."""
    texts = [f" {normalise(recall.text)} " for recall in reply.recalled]
    return {
        "exact_match": best(exact_match, reply.text, example.answers),
        "f1": best(f1, reply.text, example.answers),
        "passage_recalled": float(any(recall.source == str(example.passage) for recall in reply.recalled)),
        "answer_recalled": float(any(f" {normalise(a)} " in text for text in texts for a in example.answers)),
        "recalled_chunks": float(len(reply.recalled)),
        "prompt_tokens": float(reply.usage.prompt_tokens),
        "memory_tokens": float(reply.usage.memory_tokens),
    }


def ratios(by_system: Mapping[str, Mapping[str, Any]], headline: str) -> dict[str, float]:
    """The headline figure of each method over that of the same references as text."""
    base = by_system.get(TEXT, {}).get(headline)
    if not base:
        return {}
    others = [name for name in by_system if name not in (PLAIN, TEXT)]
    return {f"{headline}_{name}_over_{TEXT}": by_system[name][headline] / base for name in others}


# -- details ---------------------------------------------------------------------------------


def write_details(run: EvalRun, path: Path) -> None:
    """Writes one JSON line per question: its right answers, and each system's answer, figures and recalled ids."""
    with path.open("w", encoding="utf-8") as file:
        for line in _details(run):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _details(run: EvalRun) -> Iterator[dict[str, Any]]:
    for i, example in enumerate(run.eval_set.examples):
        yield {
            "question": example.question,
            "gold": list(example.answers),
            "passage": None if example.passage is None else run.eval_set.passages[example.passage],
            "systems": {system.name: _detail(example, run.replies[system.name][i]) for system in run.systems},
        }


def _detail(example: Example, reply: Reply) -> dict[str, Any]:
    scores = score(example, reply)
    return {
        "answer": reply.text,
        "exact_match": scores["exact_match"],
        "f1": scores["f1"],
        "recalled": [recall.id for recall in reply.recalled],
        "hit": bool(scores["passage_recalled"]),
    }
