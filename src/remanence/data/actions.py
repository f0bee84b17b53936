"""Facts about what somebody did: a verb, its object, and where, when, with whom, why or for how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from remanence.data.subjects import Subject, random_subject
from remanence.data.values import code, first_name, invented, value
from remanence.data.wordlists import words, words_of

OBJECTS: tuple[tuple[str, float], ...] = (("thing", 4), ("object", 2), ("person", 2), ("food", 1), ("animal", 1))


@dataclass(frozen=True)
class Deed:
    """A sentence and the questions that it answers: (question, answer), each answer a part of the sentence."""

    text: str
    subject: str
    questions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Detail:
    """An adjunct: the words in the sentence, the question word and the answer."""

    words: str
    ask: str
    answer: str


def _place(rng: Random, split: str) -> _Detail:
    if rng.random() < 0.5:
        town = value("town", rng, split)
        return _Detail(f"{rng.choice(('in', 'near', 'in'))} {town}", "Where", town)
    place = value("location", rng, split)
    return _Detail(place, "Where", place)


def _time(rng: Random, split: str) -> _Detail:
    kind, lead = rng.choice((("date", "on"), ("daytime", "on"), ("time", "at"), ("year", "in")))
    when = value(kind, rng, split)
    return _Detail(f"{lead} {when}", "When", when)


def _companion(rng: Random, split: str) -> _Detail:
    who = value("person", rng, split) if rng.random() < 0.6 else first_name(rng, split)
    lead, ask = rng.choice((("with", "With whom"), ("for", "For whom"), ("together with", "With whom")))
    return _Detail(f"{lead} {who}", ask, who)


def _reason(rng: Random, split: str) -> _Detail:
    why = rng.choice(words_of("reason", split))
    return _Detail(f"because of {why}", "Why", why)


def _price(rng: Random, split: str) -> _Detail:
    price = value("money", rng, split)
    return _Detail(f"for {price}", "For how much", price)


DETAILS: tuple[Callable[[Random, str], _Detail], ...] = (_place, _place, _time, _time, _companion, _reason, _price)


def verb(rng: Random, split: str) -> tuple[str, str]:
    """(base, past); in training one in three or four is made up, so that the form of the sentence must do."""
    if split != "heldout" and rng.random() < (0.25 if split == "practice" else 0.35):
        made = invented(rng, split).lower()
        return made, f"{made}ed"
    known = words_of("verb", split)
    base, past = rng.choice(known + words("verb_more") if split == "practice" else known).split("/")
    return base, past


def random_object(rng: Random, split: str) -> tuple[str, str]:
    """(words in the sentence, the part of them that answers "what")."""
    kind = rng.choices([name for name, _ in OBJECTS], [weight for _, weight in OBJECTS])[0]
    if kind == "thing":
        noun = rng.choice(words_of("object_one", split)) if rng.random() < 0.5 else rng.choice(words_of("noun", split))
        adjective = f"{rng.choice(words('adjective'))} " if rng.random() < 0.5 else ""
        label = f" {code(rng)}" if rng.random() < 0.08 else ""
        bare = f"{adjective}{noun}{label}"
        article = rng.choice(("the", "an" if bare[0] in "aeiou" else "a", "the"))
        return f"{article} {bare}", bare
    found = value(kind, rng, split)
    return (f"the {found}", found) if kind == "animal" else (found, found)


def random_deed(rng: Random, split: str, subject: Subject | None = None, act: tuple[str, str] | None = None) -> Deed:
    """One deed with up to three details; `act` fixes the verb (base, past)."""
    subject = subject or random_subject(rng, split, "person" if rng.random() < 0.8 else "organisation")
    base, past = act or verb(rng, split)
    said, thing = random_object(rng, split)
    details = [make(rng, split) for make in rng.sample(DETAILS, rng.choice((0, 1, 1, 2, 2, 3)))]
    details = list({detail.ask: detail for detail in details}.values())
    text = _sentence(rng, subject.name, past, said, details)
    return Deed(text, subject.name, tuple(_questions(rng, subject.name, base, past, said, thing, details)))


def _sentence(rng: Random, subject: str, past: str, said: str, details: list[_Detail]) -> str:
    clause, rest = f"{subject} {past} {said}", [detail.words for detail in details]
    form = rng.random()
    if rest and form < 0.3:
        first = rest.pop(rng.randrange(len(rest)))
        clause = f"{first}, {clause}"
    elif form < 0.4 and past.endswith("ed"):
        clause = f"{said} was {past} by {subject}"
    elif form < 0.45:
        clause = f"it was {subject} who {past} {said}"
    elif form < 0.5:
        clause = f"what {subject} {past} was {said}"
    text = " ".join([clause, *rest])
    if rng.random() < 0.1:
        text += f", {rng.choice(words('ending'))}"
    return f"{text[0].upper()}{text[1:]}."


def _questions(
    rng: Random, subject: str, base: str, past: str, said: str, thing: str, details: list[_Detail]
) -> list[tuple[str, str]]:
    short = f"the {thing}" if said.split(" ")[0] in ("a", "an", "the") else said
    ask_object = (f"What did {subject} {base}?", f"What was it that {subject} {past}?")
    asked = [(rng.choice(ask_object), thing), (f"Who {past} {short}?", subject)]
    for detail in details:
        asked.append((f"{detail.ask} did {subject} {base} {short if rng.random() < 0.7 else 'it'}?", detail.answer))
    return asked
