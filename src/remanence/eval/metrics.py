"""Compares an answer with the right ones: exact match and F1 over words, after SQuAD's normalisation."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = str.maketrans("", "", string.punctuation)
Metric = Callable[[str, str], float]


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, one space between words."""
    words = re.split(r"\s+", text.lower().translate(PUNCTUATION))
    return " ".join(word for word in words if word and word not in ARTICLES)


def exact_match(answer: str, gold: str) -> float:
    """1.0 if both are the same text after `normalise`, else 0.0."""
    return float(normalise(answer) == normalise(gold))


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall over words, with repetitions; 1.0 for two empty texts."""
    words, gold_words = normalise(answer).split(), normalise(gold).split()
    if not words or not gold_words:
        return float(words == gold_words)
    shared = sum((Counter(words) & Counter(gold_words)).values())
    return 2 * shared / (len(words) + len(gold_words))


def best(metric: Metric, answer: str, golds: Iterable[str]) -> float:
    """The largest value of `metric` over all right answers."""
    return max(metric(answer, gold) for gold in golds)
