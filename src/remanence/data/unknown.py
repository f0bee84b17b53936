"""What a model says where nothing that it recalls holds the answer, and how that is told from an answer."""

from __future__ import annotations

import re

UNKNOWN = "I do not know."
_SAID = re.compile(
    r"i (do not|don't|don’t|dont) (know|have)|i('m| am) not sure"
    r"|(it is |that is )?(unknown|not (stated|known|mentioned))"
    r"|there is no (answer|information)|no (answer|information)|cannot be (answered|known)",
    re.IGNORECASE,
)


def abstains(answer: str) -> bool:
    """Whether an answer begins by saying that there is none; an empty one is none too."""
    return not answer.strip() or _SAID.match(answer.strip()) is not None
