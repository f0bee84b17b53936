"""From a document to pieces small enough to remember: paragraphs, else sentences, else words, else characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

from remanence.errors import InputError
from remanence.types import Piece

CountTokens = Callable[[str], int]
Span = tuple[int, int]

PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
SENTENCE_END = re.compile(
    r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)"""  # Latin: white space behind it, so 3.5 and a.b stay whole
    r"""|[。！？；｡]++[”’」』）》】]*+"""  # Chinese and Japanese: none needed
    r"""|\n(?=[^\S\n]*(?:[-*•#>|]|\d++[.)])\s)"""  # the next item of a list
)
ABBREVIATION = re.compile(r"(?:^|\W)(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|No|vs|cf|ca|e\.g|i\.e|Fig|Eq)\.$")
LONGEST_ABBREVIATION = 6
CLAUSE_END = re.compile(r"\s+|(?<=[，、：])")
WINDOW = 16
"""A long sentence is first cut into stretches of this many characters per allowed token, uncounted."""


def split(text: str, count_tokens: CountTokens, max_tokens: int = 128) -> list[Piece]:
    """Pieces of at most `max_tokens` with exact spans: `text[piece.start:piece.end] == piece.text`.

    Every character that is not white space is in exactly one piece; no piece begins or ends in white space.
    Each character is counted a bounded number of times, so the time grows with the length of the text.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}", "give at least 1; Memory³ uses 128")
    packer = _Packer(text, count_tokens, max_tokens)
    for paragraph in _between(text, (0, len(text)), (match.span() for match in PARAGRAPH_END.finditer(text))):
        num_tokens = packer.count(paragraph)
        if num_tokens <= max_tokens:
            packer.put(paragraph, num_tokens)
        else:
            for sentence in _between(text, paragraph, _sentence_ends(text, *paragraph)):
                packer.add(sentence)
    packer.close()
    return packer.pieces


class _Packer:
    """Puts neighbouring spans into one piece while they fit."""

    def __init__(self, text: str, count_tokens: CountTokens, max_tokens: int) -> None:
        self.text, self.count_tokens, self.max_tokens = text, count_tokens, max_tokens
        self.pieces: list[Piece] = []
        self.open: list[Span] = []
        self.open_tokens = 0

    def count(self, span: Span) -> int:
        return self.count_tokens(self.text[span[0] : span[1]])

    def add(self, span: Span) -> None:
        num_tokens = self.count(span)
        if num_tokens <= self.max_tokens:
            self.put(span, num_tokens)
        else:
            self._cut(*span)

    def put(self, span: Span, num_tokens: int) -> None:
        """A span that fits by itself: into the open piece, or into a new one."""
        gap_tokens = min(span[0] - self.open[-1][1], 2) if self.open else 0
        if self.open_tokens + gap_tokens + num_tokens > self.max_tokens:
            self.close()
            gap_tokens = 0
        self.open.append(span)
        self.open_tokens += gap_tokens + num_tokens

    def close(self) -> None:
        """The open spans as one piece; as several if together they count more than one by one."""
        while self.open:
            num_spans = len(self.open)
            while True:
                span = (self.open[0][0], self.open[num_spans - 1][1])
                num_tokens = self.count(span)
                if num_tokens <= self.max_tokens:
                    break
                num_spans -= 1
            self.pieces.append(Piece(self.text[span[0] : span[1]], *span, num_tokens))
            self.open = self.open[num_spans:]
        self.open_tokens = 0

    def _cut(self, start: int, end: int) -> None:
        """What is too long: stretches of a bounded length first, then halves until they fit."""
        window = WINDOW * self.max_tokens
        while end - start > 2 * window:
            at = _best_cut(self.text, start + window // 2, start + window * 3 // 2)
            self.add(_stripped(self.text, start, at))
            start = _stripped(self.text, at, end)[0]
        if end - start == 1:
            raise InputError(
                f"max_tokens is {self.max_tokens}, but the character {self.text[start]!r} alone is more",
                "give a larger max_tokens",
            )
        at = _best_cut(self.text, start, end)
        self.add(_stripped(self.text, start, at))
        self.add(_stripped(self.text, at, end))


def _between(text: str, whole: Span, ends: Iterator[Span]) -> Iterator[Span]:
    """Stripped spans of `whole`, each up to the end of one of `ends`; empty ones are left out."""
    start, last = whole
    for _, end in ends:
        span = _stripped(text, start, end)
        start = end
        if span[0] < span[1]:
            yield span
    span = _stripped(text, start, last)
    if span[0] < span[1]:
        yield span


def _sentence_ends(text: str, start: int, end: int) -> Iterator[Span]:
    for match in SENTENCE_END.finditer(text, start, end):
        mark = match[0]
        if mark == "." and ABBREVIATION.search(text[max(start, match.end() - LONGEST_ABBREVIATION) : match.end()]):
            continue
        following = text[match.end() : match.end() + 2].lstrip()
        if mark[0] in ".!?…" and following[:1].islower():
            continue
        yield match.span()


def _stripped(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _best_cut(text: str, start: int, end: int) -> int:
    """Strictly inside: the white space or clause end nearest to the middle, else a whole character."""
    middle = (start + end) // 2
    places = (match.start() for match in CLAUSE_END.finditer(text, start, end))
    inside = (place for place in places if start < place < end)
    best = min(inside, key=lambda place: abs(place - middle), default=None)
    if best is not None:
        return best
    at = middle
    while at < end and _joined(text[at - 1], text[at]):
        at += 1
    return at if at < end else middle


def _joined(left: str, right: str) -> bool:
    """True where a cut would take an accent, a variation selector or half an emoji from its character."""
    return bool(unicodedata.combining(right)) or "\u200d" in (left, right) or "\ufe00" <= right <= "\ufe0f"
