"""A program for the damage test: flips one bit in each file of a bank and lets a fork try to use it.

`python damage.py BANK SEED` prints the path, the byte, and what came of it, for each file; "undetected" and
"wrong" must not be among them. A fork, because a damaged file may take the whole process with it.
"""

from __future__ import annotations

import os
import random
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from remanence.bank import Bank, NewChunk
from remanence.errors import RemanenceError
from tests.bank.helpers import FINGERPRINT, draft, make_memory

NUM_CHUNKS = 20
LIMIT_SECONDS = 60
DETECTED, UNDETECTED, WRONG, BROKEN = range(4)
WORDS = ("detected", "undetected", "wrong", "broken")


def drafts() -> list[NewChunk]:
    return [draft(f"text number {number} has words {number * 7}") for number in range(NUM_CHUNKS)]


def make(path: Path) -> int:
    with Bank.open(path) as bank:
        ids = [id for id, _ in bank.add(drafts())]
        bank.put_memories(FINGERPRINT, ids, [make_memory(number) for number in range(NUM_CHUNKS)])
        bank.put_vectors("e", ids, np.eye(NUM_CHUNKS, 32))
        bank.index()
        bank.forget([ids[3]])
        bank.add([draft("later", supersedes=ids[4])])
        bank.note_recalled(ids[:2])
    return DETECTED


def use(path: Path, expected: dict[str, str]) -> int:
    """Reads say so or are right; and `verify` says so."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        bank = Bank.open(path)
        detected = not bank.verify().ok
    except RemanenceError as error:
        return BROKEN if "\n" in str(error) else DETECTED
    for id, text in expected.items():
        try:
            if bank.get([id])[0].text != text:
                return WRONG
            number = text.split()[2] if text.startswith("text") else None
            memory = bank.load(FINGERPRINT, [id])[0]
            if memory is not None and not memory.key_LGND.equal(make_memory(int(number)).key_LGND):
                return WRONG
        except RemanenceError as error:
            detected = True
            if "\n" in str(error):
                return BROKEN
    return DETECTED if detected else UNDETECTED


def in_fork(task, *arguments: object) -> str:
    child, deadline = os.fork(), time.monotonic() + LIMIT_SECONDS
    if not child:
        code = BROKEN
        try:
            code = task(*arguments)
        finally:
            os._exit(code)
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return WORDS[code] if 0 <= code < len(WORDS) else f"died of signal {-code}"
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"


def main(path: Path, rng: random.Random) -> None:
    from remanence.bank import chunk_id

    warnings.filterwarnings("ignore", message=".*fork.*")
    for module in ("lancedb", "lancedb.index", "lancedb.query"):
        import_module(module)
    print("make", in_fork(make, path))
    texts = [each.text for each in drafts()]
    expected = {chunk_id("default", text): text for text in [*texts[:3], *texts[4:], "later"]}
    for file in sorted(each for each in path.rglob("*") if each.is_file() and each.stat().st_size):
        data = file.read_bytes()
        place = rng.randrange(len(data))
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        result = in_fork(use, path, expected)
        file.write_bytes(data)
        print(result, file.relative_to(path).as_posix(), place, flush=True)
    print("whole", in_fork(use, path, expected))


if __name__ == "__main__":
    main(Path(sys.argv[1]), random.Random(int(sys.argv[2])))
