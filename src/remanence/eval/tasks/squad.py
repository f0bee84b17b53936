"""The task "squad": questions about the contexts of a file in SQuAD format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import ClassVar

from remanence.data.squad import read_squad
from remanence.errors import InputError
from remanence.eval.tasks.base import EvalSet, Example, Task, shuffled


@dataclass(frozen=True)
class Squad(Task):
    """SQuAD 1.1 or 2.0. Unanswerable questions are counted, but not asked."""

    name: ClassVar[str] = "squad"
    headline: ClassVar[str] = "f1"
    own_context: ClassVar[bool] = True

    data: Path = field(metadata={"help": "A file in SQuAD format (.json or .json.gz)."})
    bank_size: int = field(default=1000, metadata={"help": "Contexts in the bank, including those of the questions."})

    def eval_set(self, n: int, seed: int) -> EvalSet:
        contexts = read_squad(self.data)
        texts = list(dict.fromkeys(context.text for context in contexts))
        place = {text: index for index, text in enumerate(texts)}
        examples = [
            Example(question, answers, place[context.text])
            for context in contexts
            for question, answers in context.questions
        ]
        if not examples:
            raise InputError(f"{str(self.data)!r} has no question with an answer", "give another SQuAD file")
        rng = Random(f"squad {seed}")
        chosen = rng.sample(examples, min(n, len(examples)))
        own = [index for index in dict.fromkeys(each.passage for each in chosen) if index is not None]
        rest = [index for index in range(len(texts)) if index not in set(own)]
        indices = own + rng.sample(rest, min(len(rest), max(0, self.bank_size - len(own))))
        place = {old: new for new, old in enumerate(indices)}
        chosen = [replace(each, passage=None if each.passage is None else place[each.passage]) for each in chosen]
        passages, moved = shuffled([texts[index] for index in indices], chosen, seed)
        unanswerable = sum(context.num_unanswerable for context in contexts)
        return EvalSet(passages, moved, {"passages": len(passages), "unanswerable_not_asked": unanswerable})
