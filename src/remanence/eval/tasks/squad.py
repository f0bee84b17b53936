"""Questions about real text: contexts of a file in SQuAD format, cut into chunks in the bank."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import ClassVar

from remanence.data.squad import read_squad
from remanence.errors import InputError
from remanence.eval.tasks.base import Exam, Item, Task, shuffled


@dataclass(frozen=True)
class Squad(Task):
    """SQuAD 1.1 or 2.0; unanswerable questions are counted and not asked."""

    name: ClassVar[str] = "squad"
    headline: ClassVar[str] = "f1"
    own_context: ClassVar[bool] = True

    data: Path = field(metadata={"help": "A file in SQuAD format (.json or .json.gz)."})
    bank_size: int = field(default=1000, metadata={"help": "Contexts in the bank, those of the questions included."})

    def exam(self, n: int, seed: int) -> Exam:
        contexts = read_squad(self.data)
        texts = list(dict.fromkeys(context.text for context in contexts))
        place = {text: index for index, text in enumerate(texts)}
        items = [
            Item(question, answers, place[context.text])
            for context in contexts
            for question, answers in context.questions
        ]
        if not items:
            raise InputError(f"{str(self.data)!r} has no question with an answer", "give another SQuAD file")
        rng = Random(f"squad {seed}")
        chosen = rng.sample(items, min(n, len(items)))
        own = list(dict.fromkeys(item.passage for item in chosen))
        rest = [index for index in range(len(texts)) if index not in set(own)]
        kept = own + rng.sample(rest, min(len(rest), max(0, self.bank_size - len(own))))
        moved = {old: new for new, old in enumerate(kept)}
        asked = [Item(item.question, item.answers, moved[item.passage]) for item in chosen]
        passages, asked = shuffled([texts[index] for index in kept], asked, seed)
        unanswerable = sum(context.num_unanswerable for context in contexts)
        return Exam(passages, asked, {"passages": len(passages), "unanswerable_not_asked": unanswerable})
