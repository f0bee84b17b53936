"""A seeded generator of facts in natural language: passages that state them, and questions about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from remanence.data.actions import Action, random_action, verb
from remanence.data.phrasings import Attribute
from remanence.data.sentences import ask, ask_subject, state
from remanence.data.subjects import Subject, random_attribute, random_subject, twin
from remanence.data.values import open_value, value
from remanence.data.wordlists import words

TRAIN, HELDOUT, PRACTICE = "train", "heldout", "practice"
"""Splits of words and wordings. "practice" is "train" with more of them, for training only: distractors use "train"."""
ACTION_SHARE = {TRAIN: 0.3, HELDOUT: 0.3, PRACTICE: 0.45}


@dataclass(frozen=True)
class Fact:
    """A value of one attribute of one subject."""

    subject: Subject
    attribute: Attribute
    value: str


@dataclass(frozen=True)
class Passage:
    """A text, and the facts and actions that it states."""

    text: str
    facts: tuple[Fact, ...]
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question, its answer as in the passage, and the index of the passage in its group."""

    text: str
    answer: str
    passage: int


@dataclass(frozen=True)
class FactGroup:
    """Passages that are similar to each other, and questions that only one of them answers."""

    passages: tuple[Passage, ...]
    questions: tuple[Question, ...]


def random_fact(rng: Random, split: str, subject: Subject, attribute: Attribute | None = None) -> Fact:
    attribute = attribute or random_attribute(rng, subject.kind, split)
    text = open_value(rng, split) if attribute.value == "open" else value(attribute.value, rng, split)
    return Fact(subject, attribute, text)


def sample_group(
    rng: Random, num_passages: int, split: str = TRAIN, *, max_facts: int = 4, filler: float = 0.25, alike: float = 0.6
) -> FactGroup:
    """Passages with overlapping attributes, and one or two questions for each fact, shuffled.

    `max_facts`: the most facts per passage. `filler`: the chance of a sentence without a fact after each fact. `alike`:
    the chance that a subject has the kind of the one before, and that an attribute was used before.
    """
    facts_of = _related_facts(rng, num_passages, split, max_facts, alike)
    act = verb(rng, split)
    passages = tuple(write_passage(rng, facts, split, filler, act) for facts in facts_of)
    everything = [fact for facts in facts_of for fact in facts]
    questions = []
    for index, passage in enumerate(passages):
        for fact in passage.facts:
            questions += [Question(*pair, index) for pair in _questions(rng, fact, everything, split, passage.text)]
        for action in passage.actions:
            stated = [pair for pair in action.questions if pair[1] in action.text]
            questions += [Question(*pair, index) for pair in rng.sample(stated, min(2, len(stated)))]
    rng.shuffle(questions)
    return FactGroup(passages, _unambiguous(questions))


def _unambiguous(questions: list[Question]) -> tuple[Question, ...]:
    """The questions that have only one answer in the group."""
    answers: dict[str, set[str]] = {}
    for question in questions:
        answers.setdefault(question.text, set()).add(question.answer)
    return tuple(question for question in questions if len(answers[question.text]) == 1)


def _related_facts(rng: Random, num_passages: int, split: str, max_facts: int, alike: float) -> list[list[Fact]]:
    """The facts of each passage: often the same attributes of different subjects, as in the results of a search."""
    shared = [random_subject(rng, split)]
    used: set[tuple[str, str]] = set()
    groups = []
    for _ in range(num_passages):
        subject = twin(rng, shared[-1], split) if rng.random() < alike else random_subject(rng, split)
        known = [fact.attribute for group in groups for fact in group if fact.attribute.subject == subject.kind]
        group: list[Fact] = []
        for _ in range(rng.randint(1, max_facts)):
            attribute = rng.choice(known) if known and rng.random() < alike else None
            fact = random_fact(rng, split, subject, attribute)
            if (fact.subject.name, fact.attribute.name) not in used:
                used.add((fact.subject.name, fact.attribute.name))
                group.append(fact)
            if rng.random() < 0.2:
                subject = random_subject(rng, split)
        groups.append(group or [random_fact(rng, split, random_subject(rng, split))])
        shared.append(subject)
    return groups


def write_passage(
    rng: Random, facts: Sequence[Fact], split: str, filler: float, act: tuple[str, str] | None = None
) -> Passage:
    """A passage that states the facts in order, with pronouns, filler sentences and actions.

    `act`: a verb (base, past) that half of the actions use.
    """
    sentences: list[str] = []
    stated: list[Fact] = []
    actions: list[Action] = []
    previous: Subject | None = None
    for fact in facts:
        if rng.random() < ACTION_SHARE[split]:
            doer = fact.subject if fact.subject.kind in ("person", "organisation") and not actions else None
            actions.append(random_action(rng, split, doer, act if rng.random() < 0.5 else None))
            sentences.append(actions[-1].text)
            if rng.random() < 0.7:
                continue
        sentence = state(rng, fact.subject, fact.attribute, fact.value, split, again=fact.subject == previous)
        if fact.value not in sentence:
            continue
        sentences.append(sentence)
        stated.append(fact)
        previous = fact.subject
        if rng.random() < filler:
            sentences.append(rng.choice(words("filler")))
    if rng.random() < filler:
        sentences.insert(0, rng.choice(words("filler")))
    if not stated and not actions:  # no wording fits the value: draw again
        return write_passage(rng, facts, split, filler, act)
    return Passage(" ".join(sentences), tuple(stated), tuple(actions))


def _questions(rng: Random, fact: Fact, everything: list[Fact], split: str, text: str) -> list[tuple[str, str]]:
    """(question, answer) pairs that have exactly one answer among all facts of the group."""
    same = [other for other in everything if other is not fact and other.attribute.name == fact.attribute.name]
    pairs = []
    wordings = fact.attribute.of(split)
    if wordings.asks and not any(other.subject.name == fact.subject.name for other in same):
        pairs.append((ask(rng, fact.subject, fact.attribute, split), fact.value))
    reverse = wordings.asks_subject and rng.random() < 0.5 and fact.subject.name in text
    if reverse and not any(other.value == fact.value for other in same):
        pairs.append((ask_subject(rng, fact.attribute, fact.value, split), fact.subject.name))
    return pairs


def heldout_facts(count: int, seed: int) -> list[dict[str, str]]:
    """`count` records {"passage", "question", "answer"} with names, values and wordings that training never sees.

    No two records share a subject, so each question has only one answer in all passages.
    """
    rng = Random(f"heldout {seed}")
    seen: set[str] = set()
    records: list[dict[str, str]] = []
    while len(records) < count:
        group = sample_group(rng, 1, HELDOUT, max_facts=3)
        passage = group.passages[0]
        names = {fact.subject.name for fact in passage.facts} | {action.subject for action in passage.actions}
        if names & seen or not group.questions:
            continue
        seen |= names
        question = group.questions[0]
        records.append({"passage": passage.text, "question": question.text, "answer": question.answer})
    return records


def distractor_passages(count: int, seed: int) -> list[str]:
    """`count` distinct passages of the same style about other subjects."""
    rng = Random(f"distractors {seed}")
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[sample_group(rng, 1, TRAIN).passages[0].text] = None
    return list(texts)
