"""The task "facts": held-out facts, one passage each, among passages of the same style."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from remanence.data.facts import distractor_passages, heldout_facts
from remanence.errors import InputError
from remanence.eval.tasks.base import EvalSet, Example, Task, shuffled

Record = dict[str, str]
FIELDS = ("passage", "question", "answer")


@dataclass(frozen=True)
class Facts(Task):
    """Held-out facts of the generator, or your own, among distractors."""

    name: ClassVar[str] = "facts"
    headline: ClassVar[str] = "exact_match"

    facts: Path | None = field(default=None, metadata={"help": f"JSONL of {', '.join(FIELDS)}; else the generator's."})
    distractors: Path | None = field(default=None, metadata={"help": "Plain text, paragraphs; else the generator's."})
    bank_size: int = field(default=1000, metadata={"help": "Passages in the bank, including those of the facts."})
    unanswerable: bool = field(default=False, metadata={"help": "Leave every second fact's passage out of the bank."})

    def eval_set(self, n: int, seed: int) -> EvalSet:
        records = read_facts(self.facts)[:n] if self.facts else heldout_facts(n, seed)
        texts = list(dict.fromkeys(record["passage"] for record in records))
        own = texts[::2] if self.unanswerable else texts
        place, known = {text: index for index, text in enumerate(own)}, set(texts)
        examples = [Example(each["question"], (each["answer"],), place.get(each["passage"])) for each in records]
        absent = sum(example.passage is None for example in examples)
        if self.unanswerable and absent in (0, len(examples)):
            problem = f"{len(examples)} questions about {len(texts)} passages are too few"
            raise InputError(problem, "give at least two, about two passages")
        room = max(0, self.bank_size - len(own))
        others = [text for text in self._others(room + len(texts), seed) if text not in known][:room]
        passages, moved = shuffled([*own, *others], examples, seed)
        notes = {"passages": len(passages), "distractors": len(others)}
        return EvalSet(passages, moved, notes | ({"in_no_passage": absent} if absent else {}))

    def _others(self, count: int, seed: int) -> list[str]:
        return read_paragraphs(self.distractors) if self.distractors else distractor_passages(count, seed)


def read_facts(path: Path) -> list[Record]:
    """Records with all three `FIELDS`, none of them empty. InputError names the first line that is no such record."""
    records = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if line.strip():
            records.append(_record(path, number, line))
    if not records:
        raise InputError(f"{str(path)!r} has no facts", f"one JSON object a line, with {', '.join(FIELDS)}")
    return records


def _record(path: Path, number: int, line: str) -> Record:
    try:
        fields = json.loads(line)
        record = {name: fields[name].strip() for name in FIELDS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{str(path)!r} line {number} is not a fact"
        raise InputError(reason, f"give a JSON object of strings: {', '.join(FIELDS)}") from error
    if not all(record.values()):
        empty = next(name for name in FIELDS if not record[name])
        raise InputError(f"{str(path)!r} line {number} has an empty {empty!r}", "fill it in, or remove the line")
    return record


def read_paragraphs(path: Path) -> list[str]:
    """The distinct paragraphs of a file (between empty lines), each as one line. InputError if it is unreadable."""
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", _read(path)))
    return list(dict.fromkeys(block for block in blocks if block))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}", "give a file that exists") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
