"""One flipped bit anywhere: told in one line, by `verify` or when it is read; never a wrong answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from lancedb.table import AsyncTable

from remanence.bank import Bank, checksums
from remanence.bank.checksums import MUTABLE
from remanence.bank.lance import run
from remanence.bank.memories import HEAD
from remanence.bank.rows import MEMORIES
from remanence.errors import BankCorrupted, BankError, InputError

from .helpers import FINGERPRINT, add_one, draft, make_memory


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_flipped_bit_in_any_file_is_detected(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("damage.py")), str(tmp_path / "bank"), "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made, *lines, whole = done.stdout.splitlines()
    assert (made, whole) == ("make detected", "whole undetected")
    assert len(lines) > 40
    harmless = [line for line in lines if line.split()[1].endswith(MUTABLE) and line.startswith("undetected")]
    assert [line for line in lines if not line.startswith("detected") and line not in harmless] == []


def overwrite(bank: Bank, table: str, column: str, value: str) -> None:
    """Changes a column behind the bank's back, as if other bytes had been on disk."""
    with bank._store.writing():
        run(AsyncTable(bank._store.existing(table).handle).update({column: value}))
        bank._store.sync(table)


@pytest.mark.parametrize("column", ["text", "record"])
def test_a_changed_text_row_is_never_returned(bank: Bank, column: str) -> None:
    id = add_one(bank, "Bob likes tea")
    overwrite(bank, "chunks", column, "tea")
    reads = [lambda: bank.get([id]), bank.list, lambda: bank.forget([id])]
    if column == "text":  # of a record a search reads nothing
        reads.append(lambda: bank.search_text("tea"))
    for read in reads:
        with pytest.raises(BankCorrupted, match=f"{id}.* -> "):
            read()
    assert not bank.verify().ok


@pytest.mark.parametrize("name", ["num_tokens", "source", "metadata", "checksum", "supersedes", "hash"])
def test_a_record_with_another_value_is_never_returned(bank: Bank, name: str) -> None:
    id = add_one(bank, "Bob likes tea")
    [record] = run(bank._store.existing("chunks").query().to_arrow())["record"].to_pylist()
    overwrite(bank, "chunks", "record", json.dumps(json.loads(record) | {name: "tea"}))
    with pytest.raises(BankCorrupted, match=f"{id}.* -> "):
        bank.get([id])
    assert not bank.verify().ok


@pytest.mark.parametrize("column", ["source", "supersedes"])
def test_a_column_that_differs_from_its_record_is_found(bank: Bank, column: str) -> None:
    id = add_one(bank, "Bob likes tea")
    whole = bank.get([id])
    overwrite(bank, "chunks", column, "tea")
    assert bank.get([id]) == whole
    assert not bank.verify().ok


@pytest.mark.parametrize(("column", "value"), [("payload", b"\0" * 600), ("codec", "fp32"), ("id", None)])
def test_a_changed_memory_is_never_returned(bank: Bank, column: str, value: object) -> None:
    one, two = (add_one(bank, text) for text in ("one", "two"))
    bank.put_memories(FINGERPRINT, [one, two], [make_memory(0), make_memory(1)])
    [table] = bank._store.meta.of_kind("memories")
    with bank._store.writing():
        lance = AsyncTable(bank._store.existing(table).handle)
        if column == "id":  # two memories change places
            run(lance.update({"id": "swap"}, where=f"id = '{one}'"))
            run(lance.update({"id": one}, where=f"id = '{two}'"))
        elif isinstance(value, bytes):
            [head] = run(lance.query().where(f"id = '{one}'").select(HEAD[:-1]).to_arrow()).to_pylist()
            change = pa.Table.from_pylist([head | {column: value}], schema=MEMORIES)
            run(lance.merge_insert("id").when_matched_update_all().execute(change))
        else:
            overwrite(bank, table, column, value)
    with pytest.raises(BankCorrupted, match=f"{one}.*checksum.* -> "):
        bank.load(FINGERPRINT, [one])
    assert not bank.verify().ok
    assert {chunk.text for chunk in bank.list()} == {"one", "two"}


def test_lost_files_are_told(disk_bank: Bank, tmp_path: Path) -> None:
    add_one(disk_bank, "one")
    disk_bank.close()
    meta = tmp_path / "bank" / "meta.json"
    content = meta.read_bytes()
    meta.unlink()
    with pytest.raises(BankError, match=r"meta\.json"):
        Bank.open(tmp_path / "bank")
    meta.write_bytes(content.replace(b'"format": 3', b'"format": 4'))
    with pytest.raises(BankCorrupted, match=r"meta\.json .* -> "):
        Bank.open(tmp_path / "bank")
    meta.write_bytes(content)
    shutil.rmtree(tmp_path / "bank" / "chunks.lance")
    with pytest.raises(BankCorrupted, match="lost its table of chunks"):
        Bank.open(tmp_path / "bank")


def test_a_later_format_says_upgrade(disk_bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_bank.close()
    monkeypatch.setattr("remanence.bank.meta.FORMAT", 0)
    with pytest.raises(BankError, match=r"format 3, .* reads up to 0 -> use the remanence that wrote it"):
        Bank.open(tmp_path / "bank")


def test_verify_finds_missing_files_and_a_missing_list(disk_bank: Bank, tmp_path: Path) -> None:
    add_one(disk_bank, "one")
    assert disk_bank.verify().ok
    [data] = (tmp_path / "bank" / "chunks.lance" / "data").iterdir()
    content = data.read_bytes()
    data.unlink()
    assert disk_bank.verify().problems == [f"chunks.lance/data/{data.name}: is missing"]
    with Bank.open(tmp_path / "bank") as other, pytest.raises(BankError):
        other.list()
    data.write_bytes(content)
    (tmp_path / "bank" / "sums.txt").unlink()
    assert disk_bank.verify().problems == ["sums.txt: is missing"]


def test_verify_finds_tensors_without_text(bank: Bank) -> None:
    one, two = (add_one(bank, text) for text in ("one", "two"))
    bank.put_memories(FINGERPRINT, [one, two], [make_memory(0), make_memory(1)])
    with bank._store.writing():
        run(bank._store.existing("chunks").delete(f"id = '{one}'"))
    [problem] = bank.verify().problems
    assert "1 rows have no chunk" in problem
    assert bank.compact().num_orphans == 1
    assert bank.verify().ok


def test_verify_makes_a_sample_again_from_text(bank: Bank) -> None:
    ids = [id for id, _ in bank.add([draft(f"text {number}") for number in range(6)])]
    bank.put_memories(FINGERPRINT, ids, [make_memory(int(id[:4], 16)) for id in ids], codec="int8")
    honest = bank.verify(lambda chunks: [make_memory(int(chunk.id[:4], 16)) for chunk in chunks], sample=4)
    assert (honest.ok, honest.num_recomputed, honest.num_memories, honest.num_chunks) == (True, 4, 6, 6)
    other = bank.verify(lambda chunks: [make_memory(7) for _ in chunks], sample=6)
    assert len(other.problems) == 6
    assert "differs by" in other.problems[0]
    longer = bank.verify(lambda chunks: [make_memory(int(c.id[:4], 16), num_empty=1) for c in chunks])
    assert len(longer.problems) == 6
    bank.put_memories("cd" * 32, ids, [make_memory(0)] * 6)
    with pytest.raises(InputError, match="2 models"):
        bank.verify(lambda chunks: [make_memory(0) for _ in chunks])
    assert bank.verify(lambda chunks: [make_memory(0) for _ in chunks], fingerprint="cd" * 32).ok


def test_verify_lets_others_write_while_it_reads_files(disk_bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    add_one(disk_bank, "one")
    read, written = checksums._sum_file, []

    def write_meanwhile(path: Path, sync: bool = False) -> tuple[str, int]:
        if not sync and not written:
            written.append(True)
            with Bank.open(disk_bank.path, lock_seconds=0.2) as other:
                add_one(other, "two")
                other.forget([add_one(other, "three")])
                other.compact()
        return read(path, sync)

    monkeypatch.setattr(checksums, "_sum_file", write_meanwhile)
    report = disk_bank.verify()
    assert written
    assert report.ok, report.problems
    assert report.num_chunks == 2
