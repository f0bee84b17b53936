"""A program for the crash and two-writer tests: forks writers, so that what they import is imported once.

`python writer.py kill BANK SEED NUM_KILLS` kills one writer after the other at random moments;
`python writer.py race BANK SEED NUM_WRITERS` lets all write at once. Prints one acknowledgement per line.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from remanence.bank import Bank
from tests.bank.helpers import FINGERPRINT, draft, make_memory

MAX_SAYINGS, MAX_REST_SECONDS = 6, 0.05
NUM_RACE_BATCHES = 12


def batch_texts(writer: int, batch: int) -> list[str]:
    return [f"writer {writer} batch {batch} item {item}" for item in range(3)]


def write_until_killed(path: str, writer: int, say: Callable[[str], None]) -> None:
    """Adds, encodes, forgets and compacts; says what it is about to forget and all that was done."""
    bank, batch = Bank.open(path), 0
    while True:
        ids = [id for id, _ in bank.add([draft(text) for text in batch_texts(writer, batch)])]
        say(f"added {writer} {batch}")
        bank.put_memories(FINGERPRINT, ids, [make_memory(int(id, 16) % 1000) for id in ids])
        say(f"encoded {writer} {batch}")
        if batch % 3 == 2:
            say(f"forgets {ids[0]}")
            bank.forget([ids[0]])
            say(f"forgot {ids[0]}")
        if batch % 7 == 6:
            bank.compact()
        batch += 1


def race(path: str, writer: int, say: Callable[[str], None]) -> None:
    """The batches of all writers share one text, which must be stored once."""
    bank = Bank.open(path)
    for batch in range(NUM_RACE_BATCHES):
        added = bank.add([draft(text) for text in [*batch_texts(writer, batch), f"shared {batch}"]])
        say(f"new {sum(is_new for _, is_new in added)}")


def fork(task: Callable[[str, int, Callable[[str], None]], None], path: str, writer: int) -> tuple[int, int]:
    """The writer's process id, and a pipe that gets one byte for each line that it says."""
    heard, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        return child, heard

    def say(line: str) -> None:
        os.write(1, f"{line}\n".encode())
        os.write(told, b".")

    try:
        task(path, writer, say)
    finally:
        os._exit(0)


def main(kind: str, path: str, seed: str, count: str) -> None:
    warnings.filterwarnings("ignore", message=".*fork.*")
    for module in ("lancedb", "lancedb.index", "lancedb.query"):  # once, before the writers part
        import_module(module)
    rng = random.Random(int(seed))
    if kind == "race":
        for child, _ in [fork(race, path, writer) for writer in range(int(count))]:
            os.waitpid(child, 0)
        return
    for writer in range(int(count)):
        child, heard = fork(write_until_killed, path, writer)
        for _ in range(rng.randrange(MAX_SAYINGS)):  # 0: it may die while it opens the bank
            os.read(heard, 1)
        time.sleep(rng.uniform(0, MAX_REST_SECONDS))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(heard)


if __name__ == "__main__":
    main(*sys.argv[1:])
