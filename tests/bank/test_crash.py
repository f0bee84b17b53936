"""Writers that are killed, that meet each other, and that run out of disk: nothing acknowledged is lost."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from remanence.bank import Bank
from remanence.errors import BankBusy, BankError, InputError
from remanence.files import writer_lock

from .helpers import FINGERPRINT, add_one, draft, make_memory
from .writer import NUM_RACE_BATCHES, batch_texts

NUM_KILLS = 50
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def run_writers(kind: str, path: Path, count: int) -> dict[str, list[str]]:
    """What the writers said: verb -> the rest of each line."""
    command = [sys.executable, str(Path(__file__).with_name("writer.py")), kind, str(path), "7", str(count)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = defaultdict(list)
    for line in done.stdout.splitlines():
        verb, _, rest = line.partition(" ")
        said[verb].append(rest)
    return said


def test_fifty_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    said = run_writers("kill", tmp_path / "bank", NUM_KILLS)
    assert len(said["added"]) > NUM_KILLS, "the writers must have come to write"
    with Bank.open(tmp_path / "bank") as bank:
        report = bank.verify()
        assert report.ok, report.problems
        held = {chunk.text: chunk.id for chunk in bank.list()}
        maybe = set(said["forgets"])
        assert not set(said["forgot"]) & set(held.values())
        batches = {tuple(map(int, rest.split())) for rest in said["added"]}
        for writer, batch in batches:
            for text in batch_texts(writer, batch):
                assert text in held or bank_id(text) in maybe
        for writer in range(NUM_KILLS):  # the batch that was under way is there whole, or not at all
            last = max((batch for other, batch in batches if other == writer), default=-1) + 1
            assert sum(text in held for text in batch_texts(writer, last)) in (0, 3)
            assert not any(text in held for text in batch_texts(writer, last + 1))
        ids = list(held.values())
        for id, memory in zip(ids, bank.load(FINGERPRINT, ids), strict=True):
            assert memory is None or torch.equal(memory.key_LGND, make_memory(int(id, 16) % 1000).key_LGND)
        encoded = {bank_id(text) for rest in said["encoded"] for text in batch_texts(*map(int, rest.split()))}
        kept = (encoded - maybe) & set(ids)  # forgetting takes a memory before its text
        assert kept <= set(ids) - set(bank.missing_memories(FINGERPRINT))
        bank.compact()
        assert {chunk.text for chunk in bank.list()} == set(held)
        assert bank.verify().ok


def bank_id(text: str) -> str:
    from remanence.bank import chunk_id

    return chunk_id("default", text)


def test_writers_at_once_all_succeed_and_a_shared_text_is_stored_once(tmp_path: Path) -> None:
    said = run_writers("race", tmp_path / "bank", 3)
    assert len(said["new"]) == 3 * NUM_RACE_BATCHES
    with Bank.open(tmp_path / "bank") as bank:
        assert len(bank) == sum(map(int, said["new"])) == 3 * 3 * NUM_RACE_BATCHES + NUM_RACE_BATCHES
        assert bank.verify().ok


def test_writer_that_waits_too_long_is_told_so(tmp_path: Path) -> None:
    with Bank.open(tmp_path / "bank", lock_seconds=0.05) as bank:
        with writer_lock(tmp_path / "bank" / "bank.lock", 1), pytest.raises(BankBusy, match=r"0\.05 s -> "):
            bank.add([draft("one")])
        assert add_one(bank, "one")


def test_threads_of_one_bank(disk_bank: Bank) -> None:
    def work(worker: int) -> None:
        for number in range(10):
            id = add_one(disk_bank, f"thread {worker} number {number}")
            disk_bank.put_memories(FINGERPRINT, [id], [make_memory(0)])
            assert disk_bank.load(FINGERPRINT, [id])[0] is not None
            assert disk_bank.search_text(f"{worker}")

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(disk_bank) == 30
    assert disk_bank.verify().ok


def test_reader_survives_a_compaction_by_another(disk_bank: Bank, tmp_path: Path) -> None:
    ids = [id for id, _ in disk_bank.add([draft(f"text {number}") for number in range(20)])]
    disk_bank.put_memories(FINGERPRINT, ids, [make_memory(0)] * 20)
    with Bank.open(tmp_path / "bank") as other:
        assert other.search_text("text 3")
        disk_bank.forget(ids[:5])
        disk_bank.compact()
        assert len(other.search_text("text", 30)) == len(other.list()) == 15
        assert other.load(FINGERPRINT, ids[4:6])[0] is None
        assert other.load(FINGERPRINT, ids[4:6])[1] is not None
        disk_bank.drop_memories(FINGERPRINT)
        assert other.load(FINGERPRINT, ids[5:]) == [None] * 15


def test_full_disk_is_one_line_and_leaves_the_bank_as_it_was(disk_bank: Bank) -> None:
    kept = add_one(disk_bank, "kept")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = [draft(" ".join(str(word * 7919 % 100_003) for word in range(60_000)))]
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(BankError, match=r"no space left .* -> ") as raised:
            disk_bank.add(big)
        assert "\n" not in str(raised.value)
        assert [chunk.id for chunk in disk_bank.list()] == [kept]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert disk_bank.search_text("kept")[0][0] == kept
    assert disk_bank.verify().ok
    disk_bank.add(big)
    assert len(disk_bank) == 2


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of 2 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_really_full_disk(tiny_disk: Path) -> None:
    with Bank.open(tiny_disk / "bank") as bank:
        stored: list[str] = []

        def fill() -> None:
            for number in range(500):
                text = f"{number} " + " ".join(str((word + number) * 7919 % 1_000_003) for word in range(4_000))
                bank.add([draft(text)])
                stored.append(text)

        with pytest.raises(BankError, match="no space left"):
            fill()
        assert stored
        assert [chunk.text for chunk in bank.list()] == stored
        assert bank.has(stored) == [True] * len(stored)
        assert bank.verify().ok


def test_a_folder_that_is_no_bank(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(InputError, match=r"is not a bank: .*thesis\.txt"):
        Bank.open(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        Bank.open(tmp_path / "thesis.txt")
    assert sorted(os.listdir(tmp_path)) == ["thesis.txt"]


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(BankError, match=r"no permission .* -> "):
        Bank.open(tmp_path / "bank")
