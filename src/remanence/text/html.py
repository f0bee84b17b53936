"""The visible text of an HTML page."""

from __future__ import annotations

import codecs
import re
from html.parser import HTMLParser


def visible_text(markup: str) -> tuple[str, str]:
    """Text without scripts and styles, paragraphs apart by a blank line, and the title ("" if none)."""
    page = _Page()
    page.feed(markup)
    page.close()
    return page.text(), " ".join("".join(page.title).split())


def declared_encoding(data: bytes) -> str | None:
    """What `<meta charset=...>` says, if it is not UTF-8 and Python knows it."""
    match = re.search(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([\w.:-]+)""", data[:2048], re.IGNORECASE)
    if not match:
        return None
    try:
        encoding = codecs.lookup(match[1].decode("ascii")).name
        b"".decode(encoding)  # refuses codecs that give no text, such as zlib
    except (LookupError, UnicodeDecodeError):
        return None
    return None if encoding == "utf-8" else encoding


class _Page(HTMLParser):
    """The visible text of a page; block elements begin new lines, paragraphs stand apart."""

    HIDDEN = frozenset({"script", "style", "noscript", "template", "svg", "head", "iframe", "object"})
    APART = frozenset("p h1 h2 h3 h4 h5 h6 ul ol dl table blockquote pre section article hr figure".split())
    LINE = frozenset("br li div tr dt dd header footer main nav aside form option figcaption".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title: list[str] = []
        self.hidden: list[str] = []
        self.in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("body", "h1", "p", "div"):
            self.hidden = [name for name in self.hidden if name != "head"]  # an unclosed head ends here
        if tag == "title":
            self.in_title = not self.title
        elif tag in self.HIDDEN:
            self.hidden.append(tag)
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self.in_title = False
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title.append(data)
        elif not self.hidden:
            self.parts.append(re.sub(r"\s+", " ", data))

    def _break(self, tag: str) -> None:
        if not self.hidden:
            self.parts.append("\n\n" if tag in self.APART else "\n" if tag in self.LINE else "")
            if tag in ("td", "th"):
                self.parts.append(" ")

    def text(self) -> str:
        lines = (" ".join(line.split(" ")).strip() for line in "".join(self.parts).split("\n"))
        joined = re.sub(r" {2,}", " ", "\n".join(lines))
        return re.sub(r"\n{3,}", "\n\n", joined).strip()
