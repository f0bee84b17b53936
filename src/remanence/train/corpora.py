"""The texts that nano learns from beside the generator, found by name below one folder."""

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
from remanence.train import checkpoint


@dataclass(frozen=True)
class Corpora:
    """Any of the first three may be empty; then its share of the mixture goes to the generator.

    `kept_paragraphs` are of books that only evaluations read.
    """

    contexts: list[Context] = field(default_factory=list)
    stories: list[Story] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    kept_paragraphs: list[str] = field(default_factory=list)

    @cached_property
    def lexicon(self) -> list[str]:
        """Lower-case words that occur at least five times, by the alphabet, but none that are kept for evaluation."""
        counts = Counter(word for text in self.paragraphs for word in re.findall(r"\b[a-z]{3,12}\b", text))
        return _to_learn(counts, 5)

    @cached_property
    def names(self) -> list[str]:
        """Words with a capital inside a sentence at least three times, as `lexicon`."""
        found = (re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,11}\b", text) for text in self.paragraphs)
        return _to_learn(Counter(word for words in found for word in words), 3)


@cache
def is_kept(word: str) -> bool:
    """Whether evaluations ask for `word`, as a name or as a form of a verb: training never shows it."""
    return is_heldout(word) or is_heldout(word.capitalize()) or word.lower() in _kept_verbs()


@cache
def _kept_verbs() -> frozenset[str]:
    return frozenset(form for entry in words_of("verb", "heldout") for form in re.findall(r"\w+", entry))


def _to_learn(counts: Counter[str], at_least: int) -> list[str]:
    return sorted(word for word, count in counts.items() if count >= at_least and not is_kept(word))


def load_corpora(folder: Path | None, damaged: list[str] | None = None, num_books_files: int = 3) -> Corpora:
    """Reads `squad_passages/train.json.gz`, `babi/*.tar.gz`, `classic_books/{train-*,valid}.jsonl.gz` where present.

    `damaged`: where lines of books that cannot be read are named, instead of an InputError.
    """
    if folder is None:
        return Corpora()
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}", "give --data a folder of corpora, or leave it out")
    squad, babi, books, kept = _files(folder, num_books_files)
    if not (squad or babi or books):
        hint = "it needs one of squad_passages/train.json.gz, babi/*.tar.gz, classic_books/train-*.jsonl.gz"
        raise InputError(f"folder {str(folder)!r} holds no corpus", hint)
    return Corpora(
        [context for path in squad for context in read_squad(path)],
        [story for path in babi for story in read_babi(path, tasks=(1, 5, 8, 10, 12))],
        _paragraphs(books, damaged),
        _paragraphs(kept, damaged),
    )


def corpus_files(folder: Path) -> list[Path]:
    """What `load_corpora` reads."""
    return [path for paths in _files(folder) for path in paths]


def _files(folder: Path, num_books_files: int = 3) -> tuple[list[Path], list[Path], list[Path], list[Path]]:
    """SQuAD, bAbI, books, and books that are kept for evaluation."""
    return (
        sorted(folder.glob("squad_passages/train.json.gz")),
        sorted(folder.glob("babi/*.tar.gz")),
        sorted(folder.glob("classic_books/train-*.jsonl.gz"))[:num_books_files],
        sorted(folder.glob("classic_books/valid.jsonl.gz")),
    )


def load_or_skip(data: Path | None, folder: Path, skip_damaged: bool) -> Corpora:
    """The corpora of a run in `folder`; `skip_damaged`: what cannot be read of books is counted in its log."""
    damaged: list[str] = []
    found = load_corpora(data, damaged if skip_damaged else None)
    if damaged:
        checkpoint.log(folder, {"stage": "data", "skipped": len(damaged), "first": damaged[0]})
    return found


def _paragraphs(files: Iterable[Path], damaged: list[str] | None) -> list[str]:
    return [text for path in files for book in read_books(path, damaged) for text in paragraphs(book)]
