"""Reads the bAbI tasks: short stories of one-line facts with questions between them."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

from remanence.errors import InputError


@dataclass(frozen=True)
class Story:
    """The facts before a question, the question, and its answer."""

    text: str
    question: str
    answer: str


def parse_stories(text: str) -> list[Story]:
    """One Story per question. A line with number 1 begins a new story.

    A question's line is `N question<tab>answer<tab>supports`; some copies have `|` instead of the tab.
    """
    stories: list[Story] = []
    facts: list[str] = []
    for line in text.splitlines():
        number, _, rest = line.strip().partition(" ")
        if number == "1":
            facts = []
        fields = rest.replace("|", "\t").split("\t")
        if len(fields) > 1:
            stories.append(Story(" ".join(facts), fields[0].strip(), fields[1].strip()))
        elif rest:
            facts.append(rest.strip())
    return stories


def read_babi(
    path: Path | str, tasks: tuple[int, ...] = (1,), folder: str = "en-10k", part: str = "train"
) -> list[Story]:
    """The stories of some tasks in the release's tar.gz, in the order of tasks. InputError if it cannot be read."""
    try:
        with tarfile.open(path) as archive:
            names = [
                n
                for task in tasks
                for n in archive.getnames()
                if f"/{folder}/qa{task}_" in n and n.endswith(f"_{part}.txt")
            ]
            members = [archive.extractfile(name) for name in names]
            return [story for member in members if member for story in parse_stories(member.read().decode("utf-8"))]
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"cannot read bAbI from {str(path)!r}: {error}", "give the release's tar.gz") from error
