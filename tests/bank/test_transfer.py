"""A bank as JSON lines: whole and exact in both directions, and a damaged line is named."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from remanence.bank import Bank, chunk_id, transfer
from remanence.errors import BankCorrupted, BankError, InputError

from .helpers import NOON, add_one, draft


def fill(bank: Bank) -> None:
    first = add_one(bank, "code 4417", source="a.txt", start=2, end=11, metadata={"k": "v 日本"})
    second = add_one(bank, "code 5000", supersedes=first)
    add_one(bank, 'a "quoted"\nline\u2028', expires=NOON + 50)
    add_one(bank, "soon gone", expires=NOON + 1)
    bank.add([draft(f"text {number}") for number in range(1_200)])
    third = add_one(bank, "code 4417", supersedes=second)  # said again: a circle in time
    assert third == first


def test_there_and_back(bank: Bank, tmp_path: Path, clock) -> None:
    fill(bank)
    clock.now += 2
    file = tmp_path / "export.jsonl"
    assert bank.export(file) == 1_203
    with Bank.open(tmp_path / "copy", clock=clock) as copy:
        assert all(is_new for _, is_new in copy.import_(file))
        everything = {"include_superseded": True}
        assert copy.list(**everything) == bank.list(**everything)
        assert copy.list() == bank.list()
        assert not any(is_new for _, is_new in copy.import_(file))
        assert copy.list(**everything) == bank.list(**everything)
        assert copy.verify().ok
    with Bank.open(tmp_path / "copy", namespace="other", clock=clock) as other:
        other.import_(file)
        renamed = {
            c.text: replace(c, id=chunk_id("other", c.text), namespace="other", supersedes=None) for c in bank.list()
        }
        assert {chunk.text: replace(chunk, supersedes=None) for chunk in other.list()} == renamed


def test_each_line_is_json_that_anybody_can_read(bank: Bank, tmp_path: Path) -> None:
    bank.add([draft("one"), draft("two")])
    bank.export(tmp_path / "export.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "export.jsonl").read_text("utf-8").splitlines()]
    assert [(line["text"], line["line"], line["lines"]) for line in lines] == [("one", 1, 2), ("two", 2, 2)]


@pytest.mark.parametrize("kind", ["flip", "cut", "short", "twice", "text", "later"])
def test_a_damaged_line_is_named_and_nothing_is_added(bank: Bank, tmp_path: Path, kind: str) -> None:
    bank.add([draft(f"text {number}") for number in range(5)])
    file = tmp_path / "export.jsonl"
    bank.export(file)
    lines = file.read_bytes().splitlines(keepends=True)
    damaged = {
        "flip": [*lines[:2], lines[2].replace(b"text 2", b"text 3"), *lines[3:]],
        "cut": [*lines[:2], lines[2][:40]],
        "short": lines[:2],
        "twice": [*lines[:2], lines[1], *lines[2:]],
        "text": [*lines[:2], b"\xff not json\n", *lines[3:]],
        "later": [*lines[:2], b"[1, 2]\n"],
    }[kind]
    file.write_bytes(b"".join(damaged))
    with Bank.open(tmp_path / "copy") as copy:
        with pytest.raises(InputError, match="after line 2 of 5" if kind == "short" else "line 3 of") as raised:
            copy.import_(file)
        assert "\n" not in str(raised.value)
        assert len(copy) == 0


@pytest.mark.parametrize(
    "field",
    [
        {"text": 5},
        {"id": []},
        {"source": None},
        {"supersedes": []},
        {"metadata": []},
        {"metadata": {"a": 1}},
        {"created": "noon"},
        {"created": float("nan")},
        {"num_tokens": 1.5},
        {"num_tokens": True},
        {"num_tokens": 2**40},
        {"end": 2**70},
    ],
)
def test_a_line_made_by_hand_is_refused_before_anything_is_added(bank: Bank, tmp_path: Path, field: dict) -> None:
    add_one(bank, "one")
    file = tmp_path / "export.jsonl"
    bank.export(file)
    content = json.loads(file.read_text("utf-8")) | field
    file.write_text(json.dumps(content | {"checksum": transfer._checksum(content)}) + "\n", "utf-8")
    with Bank.open(None) as copy:
        with pytest.raises(InputError):
            copy.import_(file)
        assert copy.list() == []


def test_files_that_cannot_be_used(bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No such file .* -> "):
        bank.import_(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match="ends after line 0"):
        bank.import_(tmp_path / "empty.jsonl")
    with pytest.raises(BankError, match="cannot write"):
        bank.export(tmp_path / "no" / "folder.jsonl")


def test_a_failed_export_leaves_the_old_file(bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_one(bank, "one")
    bank.export(tmp_path / "export.jsonl")
    before = (tmp_path / "export.jsonl").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    add_one(bank, "two")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BankError, match="No space left"):
        bank.export(tmp_path / "export.jsonl")
    assert (tmp_path / "export.jsonl").read_bytes() == before
    assert [name for name in os.listdir(tmp_path) if name.endswith((".jsonl", ".tmp"))] == ["export.jsonl"]


def test_an_export_that_breaks_off_leaves_nothing(bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_one(bank, "one")

    def damaged(*_: object) -> None:
        raise BankCorrupted("chunk '0' is not what was written")

    monkeypatch.setattr("remanence.bank.chunks.rows_from_table", damaged)
    with pytest.raises(BankCorrupted):
        bank.export(tmp_path / "export.jsonl")
    assert [name for name in os.listdir(tmp_path) if "export" in name] == []
