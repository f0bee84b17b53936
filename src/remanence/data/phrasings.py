"""Reads the phrasing files: how each attribute is stated and asked, and which wordings are held out.

A file is one kind of subject. `[name] kind` opens an attribute and names its kind of value; `-` is a
statement, `?` a question for the value, `?s` a question for the subject; `!` after the sign keeps the
wording for evaluation. `{S}` is the subject and `{V}` the value. `more.txt` adds wordings to any kind,
`practice.txt` for training alone: an exam's distractors have none of them, and stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

KINDS = ("person", "thing", "place", "organisation", "event")


@dataclass(frozen=True)
class Wordings:
    """The wordings of one split. `asks_subject` may be empty."""

    states: list[str] = field(default_factory=list)
    asks: list[str] = field(default_factory=list)
    asks_subject: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Attribute:
    """An attribute of a kind of subject, with its wordings."""

    name: str
    subject: str
    value: str
    train: Wordings = field(default_factory=Wordings)
    heldout: Wordings = field(default_factory=Wordings)
    practice: Wordings = field(default_factory=Wordings)

    def of(self, split: str) -> Wordings:
        if split == "heldout":
            return self.heldout
        # attributes that are named freely have no wordings for practice alone
        return self.practice if split == "practice" and self.practice.states else self.train


@cache
def attributes(subject: str) -> tuple[Attribute, ...]:
    """All attributes of one of KINDS, in the order of the file."""
    by_name: dict[str, Attribute] = {}
    for title, wordings in _sections(f"{subject}.txt"):
        name, _, value = title.partition("] ")
        by_name[name] = Attribute(name, subject, value)
        for wording in wordings:
            _add(by_name[name], *wording.split(" ", 1))
    for title, wordings in _sections("more.txt"):
        kind, _, name = title.rstrip("]").partition(".")
        for wording in wordings if kind == subject else ():
            _add(by_name[name], *wording.split(" ", 1))
    for attribute in by_name.values():
        for name in ("states", "asks", "asks_subject"):
            getattr(attribute.practice, name).extend(getattr(attribute.train, name))
    for title, wordings in _sections("practice.txt"):
        kind, _, name = title.rstrip("]").partition(".")
        for sign, wording in (line.split(" ", 1) for line in wordings if kind == subject):
            _target(by_name[name].practice, sign).append(wording)
    return tuple(by_name.values())


def _sections(name: str) -> list[tuple[str, list[str]]]:
    """(header, lines) of each section of a file."""
    text = files("remanence.data").joinpath("phrasings", name).read_text(encoding="utf-8")
    sections: list[tuple[str, list[str]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("["):
            sections.append((line[1:], []))
        else:
            sections[-1][1].append(line)
    return sections


def _add(attribute: Attribute, sign: str, wording: str) -> None:
    wordings = attribute.heldout if sign.endswith("!") else attribute.train
    _target(wordings, sign.rstrip("!")).append(wording)


def _target(wordings: Wordings, sign: str) -> list[str]:
    return {"-": wordings.states, "?": wordings.asks, "?s": wordings.asks_subject}[sign]
