"""Fills a wording with a subject and a value, and sets articles, capitals and pronouns."""

from __future__ import annotations

import re
from random import Random

from remanence.data.phrasings import Attribute
from remanence.data.subjects import Subject
from remanence.data.wordlists import words

POSSESSIVE = {"she": "her", "he": "his", "it": "its"}
ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")


def state(rng: Random, subject: Subject, attribute: Attribute, value: str, split: str, *, again: bool) -> str:
    """A sentence that states the fact. `again`: the sentence before is about the same subject."""
    wording = rng.choice(attribute.of(split).states)
    name = subject.name
    if again and rng.random() < 0.75:
        if subject.pronoun and rng.random() < 0.75:
            wording = _with_pronoun(rng, wording, subject.pronoun)
        elif subject.short:
            name = subject.short
    sentence = fill(_extended(rng, wording), name, value)
    if rng.random() < 0.08:
        sentence = f"{rng.choice(words('prefix'))} {sentence}"
    return capitalised(sentence)


def _extended(rng: Random, wording: str) -> str:
    """The sentence, sometimes with an ending without a fact, or an insertion about the subject."""
    form = rng.random()
    if form < 0.07 and wording.endswith("."):
        return f"{wording[:-1]}, {rng.choice(words('ending'))}."
    if form < 0.12 and wording.startswith("{S} "):
        aside = rng.choice((f"aged {rng.randint(3, 90)}", f"once a {rng.choice(words('job'))}", "of all people"))
        return wording.replace("{S} ", f"{{S}}, {rng.choice((aside, rng.choice(words('ending'))))}, ", 1)
    return wording


def _with_pronoun(rng: Random, wording: str, pronoun: str) -> str:
    """Replaces the subject by a pronoun where the grammar allows it: a possessive anywhere, others at the start."""
    wording = wording.replace("{S}'s", POSSESSIVE[pronoun])
    if wording.startswith("{S} "):
        also = rng.random() < 0.15 and re.match(r"\{S\} (likes|lives|works|plays|speaks|keeps|owns|has|makes)", wording)
        wording = wording.replace("{S}", f"{pronoun} also" if also else pronoun, 1)
    return wording


def ask(rng: Random, subject: Subject, attribute: Attribute, split: str) -> str:
    """A question about the value."""
    return _varied(rng, fill(rng.choice(attribute.of(split).asks), subject.name, ""))


def ask_subject(rng: Random, attribute: Attribute, value: str, split: str) -> str:
    """A question about the subject."""
    return _varied(rng, fill(rng.choice(attribute.of(split).asks_subject), "", value))


def _varied(rng: Random, question: str) -> str:
    form = rng.random()
    if form < 0.04:
        return question.rstrip("?")
    if form < 0.08:
        return question[0].lower() + question[1:]
    if form < 0.1:
        return f"Tell me: {question[0].lower()}{question[1:]}"
    return question


def fill(wording: str, subject: str, value: str) -> str:
    """The wording with both names filled in; `a` becomes `an` before a vowel."""
    text = ARTICLE.sub(r"\1n ", wording.replace("{S}", subject).replace("{V}", value))
    return text.replace("s's ", "s' ") if subject.endswith("ss") else text


def capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
