"""The content words of a question, and how many of them a text covers: English, and CJK by character pairs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

STOP_WORDS = frozenset(
    """a about above after again all also am an and any are as at be because been before being below between both
    but by can could did do does doing down during each few for from further had has have having he her here hers
    him his how i if in into is it its just many may me might more most much must my no nor not now of off on once
    only or other our out over own please s same shall she should so some such t than that the their them then there
    these they this those through to too under until up us very was we were what when where which while who whom
    whose why will with would you your question answer tell know say give name""".split()
)
"""Words that say nothing about what is asked for; the last six are the words of asking itself."""
GENERIC = frozenset(
    """type types kind kinds sort sorts year years time times number numbers amount term terms take takes took taken
    place places happen happens happened call called example used use uses part parts process mean means meant thing
    things known word words find found go goes went come comes came get gets got make makes made become became long
    old""".split()
)
"""Words that name what is asked for without telling it apart; they count only where a question has no others."""
CJK_STOP = re.compile(
    "什么|甚么|多少|哪里|哪儿|哪个|哪些|哪一|怎么|怎样|为什么|如何|请问|请|告诉|谁|几|何时|何地|吗|呢|吧|的|了"
    "|是|在|与|它|他|她|我|你|们|这|那|です|ます|ですか|は|が|の|を|に|で|と|も|か|誰|何"
)
CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
CJK_RUN = re.compile(f"[{CJK}]+")
WORD = re.compile(rf"[^\W_{CJK}]+(?:['’][^\W_{CJK}]+)?")
ASCII_WORD = re.compile(r"([a-z0-9]+)(?:'[a-z0-9]+)?")
"""`WORD` of text in small ASCII letters; finds what stands before the apostrophe."""
VOWELS = frozenset("aeiouy")
SENTENCE_START = re.compile(r"(?:^|[.!?:;\n])[\W_]*$")
NAME_WEIGHT = 2
"""A capitalised word within a sentence, a number, and two names side by side count double: they tell texts apart."""
MAX_WEIGHT = 8
"""Of a long question this much counts as all: it says more than one text can answer."""


def plain(text: str) -> str:
    """Without accents and compatibility forms: 'Zoë' is 'Zoe', full-width letters are letters."""
    if text.isascii():
        return text
    bare = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return unicodedata.normalize("NFC", bare)


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """A word in lower case without plural, -ed, -ing and final e; light, so that 'move', 'moved' and 'moving' meet."""
    word = re.sub(r"['’].*", "", word.casefold())
    if len(word) <= 3 or not word.isalpha():
        return word
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and VOWELS & set(rest):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "ls" else rest
            break
    return word.removesuffix("e") if len(word) > 3 else word


def content_words(question: str) -> dict[str, int]:
    """What is asked for, and its weight: stems, and names that stand side by side ("ada lovelace").

    Of Chinese, Japanese and Korean text it is the pairs of neighbouring characters.
    """
    bare = plain(question)
    found = [match for match in WORD.finditer(bare) if not _is_in(STOP_WORDS, match[0])]
    found = [match for match in found if not _is_in(GENERIC, match[0])] or found
    wanted: dict[str, int] = {}
    for match in found:
        word = stem(match[0])
        wanted[word] = max(NAME_WEIGHT if _is_name(match) else 1, wanted.get(word, 0))
    for left, right in pairwise(found):
        if left[0][0].isupper() and _is_name(right) and bare[left.end() : right.start()] == " ":
            wanted[f"{stem(left[0])} {stem(right[0])}"] = NAME_WEIGHT
    for run in CJK_RUN.findall(bare):
        for part in filter(None, CJK_STOP.split(run)):
            wanted |= dict.fromkeys(_pairs(part) or {part}, 1)
    return wanted


def terms(text: str) -> list[str]:
    """What a search over texts counts, in order: stems of all words but stop words, and pairs of CJK characters."""
    bare = plain(text)
    found = [term for term in map(_term, WORD.findall(bare)) if term]
    for run in () if bare.isascii() else CJK_RUN.findall(bare):
        found += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
    return found


@lru_cache(maxsize=1 << 16)
def _term(word: str) -> str:
    return "" if _is_in(STOP_WORDS, word) else stem(word)


def _is_in(words: frozenset[str], word: str) -> bool:
    return re.split("['’]", word.casefold())[0] in words


def _is_name(match: re.Match[str]) -> bool:
    first = match[0][0]
    return first.isdigit() or (first.isupper() and not SENTENCE_START.search(match.string[: match.start()][-8:]))


def coverage(wanted: dict[str, int], text: str) -> float:
    """Share of the wanted weight that occurs in `text`, from 0 to 1; 0 where nothing is wanted."""
    if not wanted:
        return 0.0
    bare = plain(text)
    words = _named_words(wanted, bare.lower()) if bare.isascii() and "'" not in bare else _all_words(wanted, bare)
    found = sum(weight for word, weight in wanted.items() if word in words)
    return min(1.0, found / min(sum(wanted.values()), MAX_WEIGHT))


def _named_words(wanted: Iterable[str], lower: str) -> set[str]:
    """Those of `wanted` in a text of small ASCII letters without apostrophes: looks only where one may begin.

    A stem begins its word, but for the y of "flies".
    """
    found = {word for word in wanted if " " not in word and _occurs(word, lower)}
    pairs = [pair for pair in wanted if " " in pair and found.issuperset(pair.split(" "))]
    return found | (_all_words(pairs, lower) & set(pairs) if pairs else set())


def _occurs(wanted: str, lower: str) -> bool:
    start = wanted.removesuffix("y")
    at = lower.find(start)
    while at >= 0:
        if at == 0 or not lower[at - 1].isalnum():
            word = ASCII_WORD.match(lower, at)
            if word is not None and stem(word[0]) == wanted:
                return True
        at = lower.find(start, at + 1)
    return False


def _all_words(wanted: Iterable[str], bare: str) -> set[str]:
    """The stems of a text, those that stand side by side, and pairs of its CJK characters."""
    stems = _stems(bare, wanted)
    words = {*stems, *map(" ".join, pairwise(stems))}
    for run in () if bare.isascii() else CJK_RUN.findall(bare):
        words |= _pairs(run) | set(run)
    return words


def _stems(bare: str, wanted: Iterable[str]) -> list[str]:
    """Of every word; of those that cannot be wanted the word itself, for speed: two letters stay as they are, but
    for "dies", which becomes "dy"."""
    if not bare.isascii():
        return [stem(word) for word in WORD.findall(bare)]
    starts = {part[:2] for word in wanted for part in word.split()}
    starts |= {f"{start[0]}i" for start in starts if start.endswith("y")}
    return [stem(word) if word[:2] in starts else word for word in ASCII_WORD.findall(bare.lower())]


def _pairs(run: str) -> set[str]:
    return {run[i : i + 2] for i in range(len(run) - 1)}
