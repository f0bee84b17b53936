"""Facts about actions: a verb, its object, and where, when, with whom, why or for how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from remanence.data.subjects import Subject, random_subject
from remanence.data.values import code, first_name, invented, value
from remanence.data.wordlists import words, words_of

OBJECTS: tuple[tuple[str, float], ...] = (("thing", 4), ("object", 2), ("person", 2), ("food", 1), ("animal", 1))


@dataclass(frozen=True)
class Action:
    """A sentence, and the (question, answer) pairs that it answers. Each answer is a part of the sentence."""

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
    """(base, past) of a verb. In training about a third are invented, so that only the sentence's form helps."""
    if split != "heldout" and rng.random() < (0.25 if split == "practice" else 0.35):
        base = invented(rng, split).lower()
        return base, f"{base}ed"
    known = words_of("verb", split)
    base, past = rng.choice(known + words("verb_more") if split == "practice" else known).split("/")
    return base, past


def random_object(rng: Random, split: str) -> tuple[str, str]:
    """(the words in the sentence, the part of them that answers "what")."""
    kind = rng.choices([name for name, _ in OBJECTS], [weight for _, weight in OBJECTS])[0]
    if kind == "thing":
        noun = rng.choice(words_of("object_one", split)) if rng.random() < 0.5 else rng.choice(words_of("noun", split))
        adjective = f"{rng.choice(words('adjective'))} " if rng.random() < 0.5 else ""
        label = f" {code(rng)}" if rng.random() < 0.08 else ""
        bare = f"{adjective}{noun}{label}"
        article = rng.choice(("the", "an" if bare[0] in "aeiou" else "a", "the"))
        return f"{article} {bare}", bare
    name = value(kind, rng, split)
    return (f"the {name}", name) if kind == "animal" else (name, name)


def random_action(
    rng: Random, split: str, subject: Subject | None = None, act: tuple[str, str] | None = None
) -> Action:
    """An action with up to three details. `act`: its verb (base, past)."""
    subject = subject or random_subject(rng, split, "person" if rng.random() < 0.8 else "organisation")
    base, past = act or verb(rng, split)
    phrase, thing = random_object(rng, split)
    details = [make(rng, split) for make in rng.sample(DETAILS, rng.choice((0, 1, 1, 2, 2, 3)))]
    details = list({detail.ask: detail for detail in details}.values())
    text = _sentence(rng, subject.name, past, phrase, details)
    return Action(text, subject.name, tuple(_questions(rng, subject.name, base, past, phrase, thing, details)))


def _sentence(rng: Random, subject: str, past: str, phrase: str, details: list[_Detail]) -> str:
    clause, rest = f"{subject} {past} {phrase}", [detail.words for detail in details]
    form = rng.random()
    if rest and form < 0.3:
        first = rest.pop(rng.randrange(len(rest)))
        clause = f"{first}, {clause}"
    elif form < 0.4 and past.endswith("ed"):
        clause = f"{phrase} was {past} by {subject}"
    elif form < 0.45:
        clause = f"it was {subject} who {past} {phrase}"
    elif form < 0.5:
        clause = f"what {subject} {past} was {phrase}"
    text = " ".join([clause, *rest])
    if rng.random() < 0.1:
        text += f", {rng.choice(words('ending'))}"
    return f"{text[0].upper()}{text[1:]}."


def _questions(
    rng: Random, subject: str, base: str, past: str, phrase: str, thing: str, details: list[_Detail]
) -> list[tuple[str, str]]:
    short = f"the {thing}" if phrase.split(" ")[0] in ("a", "an", "the") else phrase
    ask_object = (f"What did {subject} {base}?", f"What was it that {subject} {past}?")
    pairs = [(rng.choice(ask_object), thing), (f"Who {past} {short}?", subject)]
    for detail in details:
        pairs.append((f"{detail.ask} did {subject} {base} {short if rng.random() < 0.7 else 'it'}?", detail.answer))
    return pairs
