"""The last answers given from a bank, kept in its folder so that a person can ask why; forgetting removes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remanence.files import write_whole, writer_lock
from remanence.types import Reply

FILE, LOCK = "answers.jsonl", "answers.lock"
LOCK_SECONDS = 10.0
KEEP = 50
"""Of each namespace."""
OPTIONS: dict[str, tuple[type, ...]] = {"max_tokens": (int,), "temperature": (int, float), "top_p": (int, float)}
"""How a question may have been asked, beside model, method and seed."""
FIELDS: dict[str, tuple[type, ...]] = {
    "time": (int, float),
    **dict.fromkeys(("namespace", "model", "method", "question", "answer"), (str,)),
    "seed": (int,),
    "options": (dict,),
    **dict.fromkeys(("recalled", "earlier"), (tuple,)),
}
RECALLED: dict[str, tuple[type, ...]] = {"id": (str,), "score": (int, float), "share": (int, float, type(None))}
FindLive = Callable[[Collection[str]], Collection[str]]
"""Which of these ids are live chunks of the namespace."""


@dataclass(frozen=True)
class Recalled:
    """A memory that an answer came from, by id: its text is looked up in the bank, never kept here."""

    id: str
    score: float
    share: float | None


@dataclass(frozen=True)
class Answer:
    """One question, its answer, and how it was asked. `time` is seconds since 1970.

    `earlier`: ids recalled before in the same conversation, which this answer may repeat too.
    """

    time: float
    namespace: str
    model: str
    method: str
    seed: int
    question: str
    answer: str
    options: dict[str, Any]
    recalled: tuple[Recalled, ...]
    earlier: tuple[str, ...] = ()

    @property
    def sources(self) -> set[str]:
        """Ids of every memory that the answer may repeat."""
        return {recalled.id for recalled in self.recalled}.union(self.earlier)

    @classmethod
    def of(cls, reply: Reply, **fields: object) -> Answer:
        recalled = tuple(Recalled(recall.id, recall.score, recall.share) for recall in reply.recalled)
        return cls(answer=reply.text, recalled=recalled, **fields)  # type: ignore[arg-type]


class Answers:
    """The answers of the bank in `folder`, those of all its namespaces. None: a bank in RAM, which keeps none.

    Whoever changes them holds a lock of their own, inside which `add` looks whether the memories are still live.
    So an answer cannot come in after the chunk that it repeats was removed: `forget` removes the chunk first.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def add(self, answer: Answer, find_live: FindLive) -> bool:
        """Keeps `answer` and lets the oldest of its namespace go. False, and not kept: a memory of it is not live."""
        if self.folder is None:
            return False
        with self._changing(self.folder):
            if answer.sources - set(find_live(answer.sources)):
                return False
            answers, _ = self._read()
            others = [old for old in answers if old.namespace != answer.namespace]
            mine = [old for old in answers if old.namespace == answer.namespace]
            self._replace([*others, *mine[1 - KEEP :], answer])
        return True

    def last(self, namespace: str, limit: int) -> list[Answer]:
        """The newest first; [] where nothing was asked yet."""
        return [answer for answer in reversed(self._read()[0]) if answer.namespace == namespace][:limit]

    def all(self) -> list[Answer]:
        """Of every namespace, oldest first."""
        return self._read()[0]

    def remove(self, is_gone: Callable[[Answer], bool]) -> int:
        """Removes every answer that `is_gone` is true of, and every line that cannot be read; returns how many."""
        if self.folder is None or not self._may_exist(self.folder):
            return 0
        with self._changing(self.folder):
            answers, num_lines = self._read()
            rest = [answer for answer in answers if not is_gone(answer)]
            if len(rest) < num_lines:
                self._replace(rest)
        return num_lines - len(rest)

    def _may_exist(self, folder: Path) -> bool:
        """The lock is made first: while it is missing, nobody has yet looked whether the memories of an answer live."""
        return (folder / LOCK).exists() or (folder / FILE).exists() or any(folder.glob(f".{FILE}.*.tmp"))

    @contextmanager
    def _changing(self, folder: Path) -> Iterator[None]:
        """Alone among all who change the answers; what a killed process left of a new file is removed."""
        with writer_lock(folder / LOCK, LOCK_SECONDS):
            for file in folder.glob(f".{FILE}.*.tmp"):
                file.unlink(missing_ok=True)
            yield

    def _read(self) -> tuple[list[Answer], int]:
        """Answers, and the number of lines. A line that cannot be read is no answer: only the chunks are the truth."""
        try:
            lines = (self.folder / FILE).read_bytes().splitlines() if self.folder else []
        except OSError:
            lines = []
        return [answer for answer in map(_parse, lines) if answer], len(lines)

    def _replace(self, answers: Iterable[Answer]) -> None:
        assert self.folder is not None
        lines = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        write_whole(self.folder / FILE, lines.encode("utf-8", errors="replace"))


def strings_in(answers: Iterable[Answer], strings: Iterable[str]) -> set[str]:
    """Those of `strings` that a question or an answer holds, whatever the spaces and capitals."""
    text = "\n".join(_plain(part) for answer in answers for part in (answer.question, answer.answer))
    return {each for each in strings if (plain := _plain(each)) and plain in text}


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _parse(line: bytes) -> Answer | None:
    """A bank may come from anywhere: every field is of its type, and options are those that are known."""
    try:
        fields = json.loads(line)
        fields["recalled"] = tuple(Recalled(**recalled) for recalled in fields["recalled"])
        fields["earlier"] = tuple(fields.get("earlier", ()))
        answer = Answer(**fields)
        is_whole = _has_types(vars(answer), FIELDS) and _has_types(answer.options, OPTIONS)
        is_whole &= all(_has_types(vars(recalled), RECALLED) for recalled in answer.recalled)
        return answer if is_whole and all(type(id) is str for id in answer.earlier) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _has_types(values: dict[str, Any], types: dict[str, tuple[type, ...]]) -> bool:
    return all(type(value) in types.get(name, ()) for name, value in values.items())
