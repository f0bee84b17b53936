"""The answer of a model that recalls nothing relevant, and a test for such answers."""

from __future__ import annotations

import re

UNKNOWN = "I do not know."
_SAID = re.compile(
    r"i (do not|don't|don’t|dont) (know|have)\b|i('m| am) not sure\b|there is no (answer|information)\b"
    r"|((it|that) is )?(unknown|not (stated|known|mentioned))\W*$|no (answer|information)\W*$",
    re.IGNORECASE,
)


def abstains(answer: str) -> bool:
    """Whether an answer is empty, or begins with a statement that the answer is not known."""
    return not answer.strip() or _SAID.match(answer.strip()) is not None
