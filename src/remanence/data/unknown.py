"""What a model says where nothing that it recalls holds the answer, and how that is told from an answer."""

from __future__ import annotations

import re

UNKNOWN = "I do not know."
_SAID = re.compile(
    r"i (do not|don't|don’t|dont) (know|have)\b|i('m| am) not sure\b|there is no (answer|information)\b"
    r"|((it|that) is )?(unknown|not (stated|known|mentioned))\W*$|no (answer|information)\W*$",
    re.IGNORECASE,
)


def abstains(answer: str) -> bool:
    """Whether an answer begins by saying that there is none; an empty one is none too."""
    return not answer.strip() or _SAID.match(answer.strip()) is not None
