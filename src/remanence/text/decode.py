"""From bytes to text that can be stored, or one line on why not."""

from __future__ import annotations

import codecs
import re
import shlex

from remanence.errors import InputError

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its mark begins with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
SAMPLE_BYTES = 65_536
SURROGATE = re.compile(r"[\ud800-\udfff]")
CJK = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")


def decode(data: bytes, name: str, declared: str | None = None) -> str:
    """Text of `data` with `\\n` line ends: by its byte order mark, else UTF-8, else as `declared`."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return _strict(data[len(mark) :], name, encoding, len(mark))
    zero = data.find(b"\0")
    if zero >= 0:
        hint = "only text can be written: convert it to txt, md, html, jsonl or pdf first"
        raise InputError(f"{name!r} is a binary file (NUL byte at offset {zero})", hint)
    if declared:
        return newlines(data.decode(declared, errors="replace"))
    return _strict(data, name, "utf-8", 0)


def _strict(data: bytes, name: str, encoding: str, offset: int) -> str:
    try:
        return newlines(data.decode(encoding))
    except UnicodeDecodeError as error:
        position, byte = error.start + offset, data[error.start]
        guess = _likely_encoding(data) if encoding == "utf-8" else encoding.upper()
        raise InputError(
            f"{name!r} is not {encoding.upper()}: byte 0x{byte:02x} at offset {position}",
            f"convert with `iconv -f {guess} -t UTF-8 {shlex.quote(name)} > converted.txt` if it is {guess}",
        ) from None


def newlines(text: str) -> str:
    """Every line end as `\\n`, as Python reads text files."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _likely_encoding(data: bytes) -> str:
    """GB18030 where that gives Chinese, else Windows-1252: a guess for the hint, never used to read."""
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(data[:SAMPLE_BYTES])
    except UnicodeDecodeError:
        return "WINDOWS-1252"
    beyond_ascii = sum(char > "\x7f" for char in text)
    return "GB18030" if 2 * len(CJK.findall(text)) > beyond_ascii else "WINDOWS-1252"


def check_text(text: str, name: str) -> str:
    """`text` itself if it can be stored and read back unchanged; InputError with `name` if not."""
    if not text:
        raise InputError(f"{name!r} is empty", "give a text with at least one word")
    if text.isspace():
        raise InputError(f"{name!r} holds only white space", "give a text with at least one word")
    if match := SURROGATE.search(text):
        raise InputError(
            f"{name!r} has a lone surrogate U+{ord(match[0]):04X} at character {match.start()}",
            r"it is half of a broken character: remove it or write the whole one (\ud83d\ude00 is one emoji)",
        )
    if "\0" in text:
        hint = "only text can be written: remove it, or check that this is not a binary file"
        raise InputError(f"{name!r} has a NUL character at character {text.index(chr(0))}", hint)
    return text
