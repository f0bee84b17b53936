"""The subjects of facts: people, roles, things, places, organisations and events with invented names."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from random import Random

from remanence.data.phrasings import Attribute, Wordings, attributes
from remanence.data.values import code, company, first_name, last_name, person, split_checked, title, town
from remanence.data.wordlists import words, words_of

WEIGHTS = {"person": 50, "thing": 18, "place": 12, "organisation": 12, "event": 8}
OPEN_SHARE = 0.15
LABEL_SHARE = 0.1


@dataclass(frozen=True)
class Subject:
    """`name`: as in questions. `pronoun`: "she", "he", "it", or "" if none fits."""

    kind: str
    name: str
    pronoun: str = field(default="", compare=False)
    short: str = field(default="", compare=False)


def random_subject(rng: Random, split: str, kind: str | None = None) -> Subject:
    kind = kind or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    return {"person": _person, "thing": _thing, "place": _place, "organisation": _organisation, "event": _event}[kind](
        rng, split
    )


def twin(rng: Random, subject: Subject, split: str) -> Subject:
    """Another subject of the same kind; sometimes a person with the same first name, in training also last name."""
    first, _, last = subject.name.partition(" ")
    if subject.kind == "person" and subject.short == first and last and rng.random() < 0.2:
        return Subject("person", f"{first} {last_name(rng, split)}", subject.pronoun, first)
    if split != "heldout" and subject.short and last and rng.random() < 0.25:
        gender, pronoun = rng.choice((("firstname_f", "she"), ("firstname_m", "he")))
        other = rng.choice(words_of(gender, split))
        return Subject("person", f"{other} {last}", pronoun, other)
    return random_subject(rng, split, subject.kind)


def _person(rng: Random, split: str) -> Subject:
    form = rng.random()
    if form < 0.12:
        role = rng.choice(words_of("role", split))
        if rng.random() < 0.3:
            role = f"{first_name(rng, split)}'s {role.split(' ', 1)[1]}"
        return Subject("person", role)
    if form < 0.2:
        return Subject("person", person(rng, split), rng.choice(("she", "he")))
    gender, pronoun = rng.choice((("firstname_f", "she"), ("firstname_m", "he")))
    first = rng.choice(words_of(gender, split)) if rng.random() < 0.75 else first_name(rng, split)
    if form < 0.4:
        return Subject("person", first, pronoun)
    return Subject("person", f"{first} {last_name(rng, split)}", pronoun, first)


def _thing(rng: Random, split: str) -> Subject:
    noun = rng.choice(words_of("noun", split))
    compound = f"{rng.choice(words('noun'))} {noun}" if rng.random() < 0.4 else noun
    form = rng.random()
    if form < 0.35:
        return Subject("thing", f"the {rng.choice(words('adjective'))} {compound}", "it")
    if form < 0.6:
        return Subject("thing", f"{first_name(rng, split)}'s {compound}", "it")
    if form < 0.7:
        return Subject("thing", f"the {compound} of {person(rng, split)}", "it")
    if form < 0.8:
        return Subject("thing", f"{rng.choice(('my', 'our', 'the'))} {compound}", "it")
    if form < 0.9:
        return Subject("thing", f"the {last_name(rng, split)} {noun}", "it")
    return Subject("thing", split_checked(lambda: f"{noun} {code(rng)}", split), "it")


def _place(rng: Random, split: str) -> Subject:
    form = rng.random()
    if form < 0.75:
        return Subject("place", town(rng, split), "it")
    kind = rng.choice(("Lake", "Mount", "Port", "Fort", "Isle of", "Cape"))
    return Subject("place", f"{kind} {last_name(rng, split)}", "it")


def _organisation(rng: Random, split: str) -> Subject:
    form = rng.random()
    if form < 0.7:
        return Subject("organisation", company(rng, split), "it")
    noun = rng.choice(words("org_noun"))
    if form < 0.85:
        return Subject("organisation", f"the {noun.lower()} of {town(rng, split)}", "it")
    return Subject("organisation", f"the {town(rng, split)} {noun}", "it")


def _event(rng: Random, split: str) -> Subject:
    noun = rng.choice(words_of("event_noun", split))
    form = rng.random()
    if form < 0.4:
        return Subject("event", f"the {town(rng, split)} {noun}", "it")
    if form < 0.6:
        return Subject("event", f"{first_name(rng, split)}'s {noun}", "it")
    if form < 0.8:
        return Subject("event", f"the {noun} for {person(rng, split)}", "it")
    return Subject("event", f"the {noun} in {title(rng, split)}" if form < 0.85 else f"the {noun}", "it")


def random_attribute(rng: Random, kind: str, split: str) -> Attribute:
    """A phrased attribute of the kind; in training also an open attribute, whose name is any noun phrase.

    Open attributes ("For Dagny Klein the favourite street is terrier") teach form without sense, and are not
    what anybody would ask in earnest: the evaluation has none.
    """
    if split != "heldout" and kind in ("person", "thing", "organisation") and rng.random() < OPEN_SHARE:
        return open_attribute(_open_name(rng), kind)
    chosen = rng.choice(attributes(kind))
    return _labelled(chosen) if split != "heldout" and rng.random() < LABEL_SHARE else chosen


def _open_name(rng: Random) -> str:
    form = rng.random()
    if form < 0.5:
        return rng.choice(words("attribute"))
    noun = rng.choice(words("noun"))
    return f"{rng.choice(words('adjective'))} {noun}" if form < 0.8 else noun


@cache
def _labelled(attribute: Attribute) -> Attribute:
    """The same attribute, stated and asked by its name only, as in a form or a list."""
    plain = open_attribute(attribute.name.replace("_", " "), attribute.subject)
    states = [*plain.train.states, *attribute.train.states[:1]]
    train = Wordings(states, [*plain.train.asks, *attribute.train.asks[:2]], [])
    return Attribute(attribute.name, attribute.subject, attribute.value, train, attribute.heldout)


@cache
def open_attribute(name: str, kind: str) -> Attribute:
    """An attribute with the given name, which the question repeats."""
    train = Wordings(
        [
            f"The {name} of {{S}} is {{V}}.",
            f"{{S}}'s {name} is {{V}}.",
            f"{{S}} chose {{V}} as {name}.",
            f"The {name} that {{S}} has is {{V}}.",
            f"{{S}}: {name} {{V}}.",
            f"{{S}} ({name}: {{V}}).",
            f"{{V}} is the {name} of {{S}}.",
            f"{{S}} has {{V}} as {name}.",
            f"{{S}} picked {{V}} for the {name}.",
            f"{{S}} needed a {name} and took {{V}}.",
            f"When it comes to the {name}, {{S}} uses {{V}}.",
            f"With {{V}}, {{S}} found a good {name}.",
            f"The {name}, as {{S}} said, is {{V}}.",
            f"As {name}, {{S}} has {{V}}.",
        ],
        [
            f"What is the {name} of {{S}}?",
            f"What is {{S}}'s {name}?",
            f"Which {name} does {{S}} have?",
            f"What did {{S}} pick for the {name}?",
            f"What does {{S}} use as {name}?",
            f"{{S}}'s {name}?",
        ],
        [f"Whose {name} is {{V}}?"] if kind == "person" else [],
    )
    heldout = Wordings([f"For {{S}} the {name} is {{V}}."], [f"What {name} did {{S}} choose?"], [])
    return Attribute(name, kind, "open", train, heldout)
