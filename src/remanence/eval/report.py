"""What an evaluation prints: one object of figures, and one line per question for those who want to look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.eval.run import Options, Sat, figures, ratios, score
from remanence.eval.tasks.base import Task
from remanence.lm.lm import LM
from remanence.provenance import commit, machine


def result(lm: LM, task: Task, options: Options, sat: Sat) -> dict[str, Any]:
    """{"task", "n", "seed", "commit", "machine", "model", "conditions", "systems": {name: figures}, "ratios"}."""
    by_system = figures(sat)
    return {
        "task": task.name,
        "n": len(sat.exam.items),
        "seed": options.seed,
        "commit": commit(),
        "machine": machine(),
        "model": lm.name,
        "conditions": {**sat.exam.notes, **sat.written, "max_tokens": options.max_tokens},
        "systems": by_system,
        "ratios": ratios(by_system, task.headline),
    }


def details(sat: Sat) -> Iterator[dict[str, Any]]:
    """Per question: what was asked, what is right, and each system's answer, figures and recalled ids, best first."""
    for i, item in enumerate(sat.exam.items):
        yield {
            "question": item.question,
            "gold": list(item.answers),
            "passage": None if item.passage is None else sat.exam.passages[item.passage],
            "systems": {system.name: _detail(sat, system.name, i) for system in sat.systems},
        }


def _detail(sat: Sat, name: str, i: int) -> dict[str, Any]:
    reply = sat.replies[name][i]
    scored = score(sat.exam.items[i], reply)
    return {
        "answer": reply.text,
        "exact_match": scored["exact_match"],
        "f1": scored["f1"],
        "recalled": [recall.id for recall in reply.recalled],
        "hit": bool(scored["passage_recalled"]),
    }


def check_writable(path: Path) -> None:
    """InputError now, rather than after the last question."""
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r}: {error.strerror}", "choose a file in a folder of yours"
        ) from error


def write_details(sat: Sat, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in details(sat):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
