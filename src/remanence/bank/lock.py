"""One writer at a time: a lock on a file of the bank's folder, freed by the system if its holder dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from remanence.errors import BankBusy

POLL_SECONDS = 0.01


@contextmanager
def writer_lock(path: Path, wait_seconds: float) -> Iterator[None]:
    """Holds `path` exclusively, across processes and threads; BankBusy after `wait_seconds`."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                problem = f"another writer has held bank {str(path.parent)!r} for {wait_seconds:g} s"
                raise BankBusy(problem, "wait until it is done, or open the bank with a longer lock_seconds")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
