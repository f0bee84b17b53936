"""The one place where a failure of Lance or of the disk becomes one line that a person can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from remanence.errors import BankBusy, BankCorrupted, BankError, RemanenceError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = ("no space left", "quota exceeded", "file too large", *(f"os error {code}" for code in FULL))
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
DENIED_WORDS = ("permission denied", "read-only file system", *(f"os error {code}" for code in DENIED))
CONFLICT_WORDS = ("commit conflict", "too many concurrent writers", "concurrent transaction")
MAX_REASON_CHARS = 200
NOT_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)
BUGS = (TypeError, AttributeError, NameError, AssertionError)
"""A mistake in the code that calls, never damage on disk: shown as it is."""


@contextmanager
def guard(name: str) -> Iterator[None]:
    """Turns whatever Lance raises inside, Rust panics included, into a BankError that names bank `name`."""
    try:
        yield
    except (RemanenceError, *NOT_OURS, *BUGS):
        raise
    except BaseException as error:  # a Rust panic is no Exception
        raise explain(name, error) from None


def explain(name: str, error: BaseException) -> BankError:
    """What went wrong with bank `name`, in words."""
    text = str(error)
    words, code = text.lower(), getattr(error, "errno", None)
    if code in FULL or _holds(words, FULL_WORDS):
        hint = "free some space and repeat the call: what the bank held before is unchanged"
        return BankError(f"no space left on the disk of bank {name!r}", hint)
    if code in DENIED or _holds(words, DENIED_WORDS):
        return BankError(f"no permission to use bank {name!r}", "check the owner and mode of its folder and files")
    if _holds(words, CONFLICT_WORDS):
        return BankBusy(f"another writer changed bank {name!r} at the same moment", "repeat the call")
    reason = f"{type(error).__name__}: {' '.join(text.split())[:MAX_REASON_CHARS]}"
    hint = "run `remanence bank verify`; text that is intact can be saved with `remanence bank export`"
    return BankCorrupted(f"bank {name!r} cannot be read or written ({reason})", hint)


def _holds(words: str, any_of: tuple[str, ...]) -> bool:
    return any(word in words for word in any_of)
