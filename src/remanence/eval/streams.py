"""What an exam of retention is made of: facts to keep, and an endless stream of other text after them."""

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
"""Passages that the generator makes at once."""


@dataclass(frozen=True)
class Fact:
    """A passage in chunks, and one question about it."""

    chunks: tuple[str, ...]
    question: str
    answers: tuple[str, ...]


def facts_to_keep(data: Path | None, n: int, seed: int, count_tokens: Callable[[str], int], limit: int) -> list[Fact]:
    """`n` facts with words that no training text has; or with `data` (SQuAD format) one question of each context.

    SQuAD's questions are those whose first answer has at most `ANSWER_WORDS` words (the papers keep answers of three
    tokens).
    """
    if data is not None:
        rng = Random(f"retention {seed}")
        found = [rng.choice(facts) for facts in short_answers(data, count_tokens, limit)]
        return rng.sample(found, min(n, len(found)))
    return [
        _fact(record["passage"], record["question"], (record["answer"],), count_tokens, limit)
        for record in heldout_facts(n, seed)
    ]


ANSWER_WORDS = 3


def short_answers(data: Path, count_tokens: Callable[[str], int], limit: int) -> list[list[Fact]]:
    """Of each context of a SQuAD file every question with a short answer; contexts without one are left out."""
    found = [
        [
            _fact(context.text, question, answers, count_tokens, limit)
            for question, answers in context.questions
            if len(answers[0].split()) <= ANSWER_WORDS
        ]
        for context in read_squad(data)
    ]
    if not any(found):
        raise InputError(f"{str(data)!r} has no question with a short answer", "give another SQuAD file")
    return [facts for facts in found if facts]


def _fact(text: str, question: str, answers: tuple[str, ...], count_tokens: Callable[[str], int], limit: int) -> Fact:
    return Fact(tuple(piece.text for piece in split(text, count_tokens, limit)), question, answers)


def other_texts(
    source: Path | None, seed: int, count_tokens: Callable[[str], int], limit: int
) -> Iterator[tuple[str, int]]:
    """(chunk, tokens) of text that no question is about, for as long as it is asked for.

    `source`: books (.jsonl, .jsonl.gz with a "text" each, or plain .txt), their paragraphs joined until a chunk is
    full, again from the start when they end; None: the generator's passages about other subjects, never the same.
    """
    texts = _books(source) if source else _generated(seed)
    held: list[str] = []
    size = 0
    for text in texts:
        for piece in split(text, count_tokens, limit):
            if held and size + piece.num_tokens + 1 > limit:
                joined = " ".join(held)
                yield joined, count_tokens(joined)
                held, size = [], 0
            held.append(piece.text)
            size += piece.num_tokens + 1


def check_files(*files: Path | None) -> None:
    """InputError now, rather than when a model is loaded."""
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
