"""The data of a retention test: facts with questions, and an endless stream of other text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from random import Random

from remanence.data.books import paragraphs, read_books
from remanence.data.facts import distractor_passages, heldout_facts
from remanence.data.squad import read_squad
from remanence.errors import InputError
from remanence.text.chunks import split

GENERATED = 2000
"""Passages per call of the generator."""


@dataclass(frozen=True)
class FactQuestion:
    """A passage in chunks, a question about it, and the right answers."""

    chunks: tuple[str, ...]
    question: str
    answers: tuple[str, ...]


def draw_facts(
    data: Path | None, n: int, seed: int, count_tokens: Callable[[str], int], limit: int
) -> list[FactQuestion]:
    """`n` facts with words that no training text contains; with `data` (SQuAD format), one question per context.

    Only questions whose first answer has at most `ANSWER_WORDS` words are used (the papers: three tokens). `limit`: the
    most tokens of a chunk.
    """
    if data is not None:
        rng = Random(f"retention {seed}")
        questions = [rng.choice(facts) for facts in short_answers(data, count_tokens, limit)]
        return rng.sample(questions, min(n, len(questions)))
    return [
        _fact(record["passage"], record["question"], (record["answer"],), count_tokens, limit)
        for record in heldout_facts(n, seed)
    ]


ANSWER_WORDS = 3


def short_answers(data: Path, count_tokens: Callable[[str], int], limit: int) -> list[list[FactQuestion]]:
    """The questions with a short answer, by context of a SQuAD file. InputError if there are none."""
    questions = [
        [
            _fact(context.text, question, answers, count_tokens, limit)
            for question, answers in context.questions
            if len(answers[0].split()) <= ANSWER_WORDS
        ]
        for context in read_squad(data)
    ]
    if not any(questions):
        raise InputError(f"{str(data)!r} has no question with a short answer", "give another SQuAD file")
    return [facts for facts in questions if facts]


def _fact(
    text: str, question: str, answers: tuple[str, ...], count_tokens: Callable[[str], int], limit: int
) -> FactQuestion:
    return FactQuestion(tuple(piece.text for piece in split(text, count_tokens, limit)), question, answers)


def other_texts(
    source: Path | None, seed: int, count_tokens: Callable[[str], int], limit: int
) -> Iterator[tuple[str, int]]:
    """An endless stream of (chunk, number of tokens) that no question is about.

    `source`: books (.jsonl or .jsonl.gz with a "text" on each line, or plain .txt), whose paragraphs are joined to full
    chunks, again and again; None: generated passages about other subjects, without repetition.
    """
    texts = _books(source) if source else _generated(seed)
    parts: list[str] = []
    size = 0
    for text in texts:
        for piece in split(text, count_tokens, limit):
            if parts and size + piece.num_tokens + 1 > limit:
                joined = " ".join(parts)
                yield joined, count_tokens(joined)
                parts, size = [], 0
            parts.append(piece.text)
            size += piece.num_tokens + 1


def check_files(*files: Path | None) -> None:
    """InputError for a file that does not exist: before a model is loaded."""
    for file in files:
        if file is not None and not file.is_file():
            raise InputError(f"there is no file {str(file)!r}", "give a .txt, .jsonl, .json or .gz file that exists")


def _books(source: Path) -> Iterator[str]:
    if source.suffix == ".txt":
        books = [source.read_text(encoding="utf-8", errors="replace")]
    else:
        books = list(read_books(source))
    if not any(True for book in books for _ in paragraphs(book)):
        raise InputError(f"{str(source)!r} has no paragraph of 80 characters", "give a file with running text")
    return chain.from_iterable(paragraphs(book) for _ in count() for book in books)


def _generated(seed: int) -> Iterator[str]:
    return chain.from_iterable(distractor_passages(GENERATED, seed * 1000 + number) for number in count(1))
