"""The last answers given from a bank, kept beside it so that a person can ask why; forgetting scrubs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remanence.files import write_whole, writer_lock

if TYPE_CHECKING:
    from remanence.types import Reply

FILE, LOCK = "answers.jsonl", "answers.lock"
LOCK_SECONDS = 10.0
KEEP = 50
"""Of each namespace."""
OPTIONS: dict[str, tuple[type, ...]] = {"max_tokens": (int,), "temperature": (int, float), "top_p": (int, float)}
"""How an answer may have been asked, beside model, method and seed."""
FIELDS: dict[str, tuple[type, ...]] = {
    "time": (int, float),
    **dict.fromkeys(("namespace", "model", "method", "question", "answer"), (str,)),
    "seed": (int,),
    "options": (dict,),
    **dict.fromkeys(("recalled", "earlier"), (tuple,)),
}
RECALLED: dict[str, tuple[type, ...]] = {"id": (str,), "score": (int, float), "share": (int, float, type(None))}


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
    def of(cls, reply: Reply, **known: object) -> Answer:
        recalled = tuple(Recalled(recall.id, recall.score, recall.share) for recall in reply.recalled)
        return cls(answer=reply.text, recalled=recalled, **known)  # type: ignore[arg-type]


def note(bank: Path, answer: Answer) -> None:
    """Appends to the bank's answers and lets the oldest of the namespace go."""
    with _changing(bank):
        answers = _read(bank)
        others = [old for old in answers if old.namespace != answer.namespace]
        mine = [old for old in answers if old.namespace == answer.namespace]
        _replace(bank, [*others, *mine[1 - KEEP :], answer])


def last(bank: Path, namespace: str, limit: int = 1) -> list[Answer]:
    """The newest first; [] where nothing was asked yet."""
    return [answer for answer in reversed(_read(bank)) if answer.namespace == namespace][:limit]


def scrub(bank: Path, ids: Collection[str]) -> int:
    """Removes every answer that one of `ids` may stand in."""
    if not (bank / FILE).exists():
        return 0
    with _changing(bank):
        answers = _read(bank)
        kept = [answer for answer in answers if answer.sources.isdisjoint(ids)]
        if len(kept) < len(answers):
            _replace(bank, kept)
    return len(answers) - len(kept)


def prune(bank: Path, namespace: str, is_live: Callable[[str], bool]) -> int:
    """`scrub` for every memory of the namespace's answers that is live no more, however it went."""
    ids = set[str]().union(*(answer.sources for answer in last(bank, namespace, KEEP)))
    gone = {id for id in ids if not is_live(id)}
    return scrub(bank, gone) if gone else 0


@contextmanager
def _changing(bank: Path) -> Iterator[None]:
    """Alone among all who change the answers, so that none puts back what another scrubs; no draft of a kill stays."""
    with writer_lock(bank / LOCK, LOCK_SECONDS):
        for draft in bank.glob(f".{FILE}.*.tmp"):
            draft.unlink(missing_ok=True)
        yield


def _read(bank: Path) -> list[Answer]:
    """A line that cannot be read is left out: this file is a convenience, the bank is the truth."""
    try:
        lines = (bank / FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [answer for answer in map(_parse, lines) if answer]


def _parse(line: str) -> Answer | None:
    """A bank may come from anywhere: every field is of its type, and options are those that are known."""
    try:
        fields = json.loads(line)
        fields["recalled"] = tuple(Recalled(**recalled) for recalled in fields["recalled"])
        fields["earlier"] = tuple(fields.get("earlier", ()))
        answer = Answer(**fields)
        is_whole = _holds(vars(answer), FIELDS) and _holds(answer.options, OPTIONS)
        is_whole &= all(_holds(vars(recalled), RECALLED) for recalled in answer.recalled)
        return answer if is_whole and all(type(id) is str for id in answer.earlier) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _holds(values: dict[str, Any], types: dict[str, tuple[type, ...]]) -> bool:
    return all(type(value) in types.get(name, ()) for name, value in values.items())


def _replace(bank: Path, answers: Iterable[Answer]) -> None:
    lines = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
    write_whole(bank / FILE, lines.encode("utf-8", errors="replace"))
