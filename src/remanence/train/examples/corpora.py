"""Corpora for training beside the generator: SQuAD, bAbI and books, read from one folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from remanence.data.babi import Story, read_babi
from remanence.data.books import paragraphs, read_books
from remanence.data.squad import Context, read_squad
from remanence.data.wordlists import is_heldout, words_of
from remanence.errors import InputError
from remanence.train.core import checkpoint


@dataclass(frozen=True)
class Corpora:
    """SQuAD contexts, bAbI stories and paragraphs of books. The share of an empty corpus goes to the generator.

    `heldout_paragraphs`: of held-out books, which only evaluations read.
    """

    contexts: list[Context] = field(default_factory=list)
    stories: list[Story] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    heldout_paragraphs: list[str] = field(default_factory=list)

    @cached_property
    def lexicon(self) -> list[str]:
        """Lower-case words that occur at least five times, in alphabetical order, without held-out words."""
        counts = Counter(word for text in self.paragraphs for word in re.findall(r"\b[a-z]{3,12}\b", text))
        return _frequent(counts, 5)

    @cached_property
    def names(self) -> list[str]:
        """Words that are capitalised inside a sentence at least three times, as in `lexicon`."""
        names = (re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,11}\b", text) for text in self.paragraphs)
        return _frequent(Counter(word for words in names for word in words), 3)


@cache
def is_heldout_word(word: str) -> bool:
    """Whether evaluations use `word`, as a name or as a form of a verb. Training never shows such words."""
    return is_heldout(word) or is_heldout(word.capitalize()) or word.lower() in _heldout_verbs()


@cache
def _heldout_verbs() -> frozenset[str]:
    return frozenset(form for entry in words_of("verb", "heldout") for form in re.findall(r"\w+", entry))


def _frequent(counts: Counter[str], at_least: int) -> list[str]:
    return sorted(word for word, count in counts.items() if count >= at_least and not is_heldout_word(word))


def load_corpora(folder: Path | None, damaged: list[str] | None = None, num_books_files: int = 3) -> Corpora:
    """Corpora of `folder`: `squad_passages/train.json.gz`, `babi/*.tar.gz`, `classic_books/{train-*,valid}.jsonl.gz`.

    InputError if the folder or a file cannot be read. `damaged`: unreadable lines of books are appended to it instead.
    """
    if folder is None:
        return Corpora()
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}", "give --data a folder of corpora, or leave it out")
    squad, babi, books, heldout = _files(folder, num_books_files)
    if not (squad or babi or books):
        hint = "it needs one of squad_passages/train.json.gz, babi/*.tar.gz, classic_books/train-*.jsonl.gz"
        raise InputError(f"folder {str(folder)!r} holds no corpus", hint)
    return Corpora(
        [context for path in squad for context in read_squad(path)],
        [story for path in babi for story in read_babi(path, tasks=(1, 5, 8, 10, 12))],
        _paragraphs(books, damaged),
        _paragraphs(heldout, damaged),
    )


def corpus_sizes(folder: Path | None) -> dict[str, int]:
    """The files that `load_corpora` reads, by their path in the folder, and their sizes in bytes."""
    files = [path for paths in _files(folder) for path in paths] if folder else []
    return {path.relative_to(folder or "").as_posix(): path.stat().st_size for path in files}


def _files(folder: Path, num_books_files: int = 3) -> tuple[list[Path], list[Path], list[Path], list[Path]]:
    """Files of SQuAD, bAbI, books, and held-out books."""
    return (
        sorted(folder.glob("squad_passages/train.json.gz")),
        sorted(folder.glob("babi/*.tar.gz")),
        sorted(folder.glob("classic_books/train-*.jsonl.gz"))[:num_books_files],
        sorted(folder.glob("classic_books/valid.jsonl.gz")),
    )


def load_or_skip(data: Path | None, folder: Path, skip_damaged: bool) -> Corpora:
    """The corpora of a run in `folder`. `skip_damaged`: unreadable lines of books are skipped and logged."""
    damaged: list[str] = []
    corpora = load_corpora(data, damaged if skip_damaged else None)
    if damaged:
        checkpoint.log(folder, {"stage": "data", "skipped": len(damaged), "first": damaged[0]})
    return corpora


def _paragraphs(files: Iterable[Path], damaged: list[str] | None) -> list[str]:
    return [text for path in files for book in read_books(path, damaged) for text in paragraphs(book)]
