from __future__ import annotations

import io
import json
import sys
import time
from datetime import datetime

import pytest

from remanence.cli.write import SHOWN


def feed(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_files_and_folders(call, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("The sky over Ost is green.")
    (tmp_path / "b.md").write_text("# Ost\n\nOst has 12 bridges.")
    outcome = call("write", "notes", "b.md", "--json", model=True)
    assert outcome.code == 0
    receipt = outcome.json["receipt"]
    assert (receipt["num_documents"], receipt["num_chunks"], receipt["skipped"]) == (2, 2, [])
    again = call("write", "notes", model=True)
    assert "Remembered 0 new memories from 1 document, 1 known already" in again.out


def test_standard_input(call, monkeypatch):
    feed(monkeypatch, "Grüße aus Ost.".encode())
    assert call("write", model=True).code == 0
    (chunk,) = call("bank", "list", "--json").json["chunks"]
    assert (chunk["text"], chunk["source"]) == ("Grüße aus Ost.", "stdin")


def test_standard_input_may_be_given_a_name(call, monkeypatch):
    feed(monkeypatch, b"Ost has 12 bridges.")
    call("write", "-", "--source", "note 7", model=True)
    assert call("bank", "list", "--json").json["chunks"][0]["source"] == "note 7"


def test_cold_writes_text_only(call, tmp_path):
    (tmp_path / "a.txt").write_text("The sky over Ost is green.")
    call("write", "a.txt", "--cold", model=True)
    assert call("bank", "stats", "--json").json["memories"] == {}
    assert call("ask", "Which sky is over Ost?", "--json", model=True).json["recalled"]


def test_one_bad_file_does_not_lose_the_others(call, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "good.txt").write_text("The sky over Ost is green.")
    outcome = call("write", "bad.txt", "missing.txt", "good.txt", "--json", model=True)
    assert outcome.code == 2
    assert outcome.json["receipt"]["num_documents"] == 1
    assert [problem["failed"] for problem in outcome.json["problems"]] == [True, True]
    assert outcome.err.count("error: ") == 2
    assert "iconv" in outcome.err


def test_nothing_readable_makes_no_bank(call, tmp_path):
    outcome = call("write", "missing.txt", model=True)
    assert outcome.code == 2
    assert "'missing.txt' does not exist" in outcome.err
    assert not (tmp_path / "bank").exists()


def test_an_empty_folder_says_so(call, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = call("write", "empty", model=True)
    assert outcome.code == 2
    assert "no file that can be read" in outcome.err


def test_files_that_are_passed_over_are_named_then_counted(call, tmp_path):
    for number in range(SHOWN + 3):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff")
    (tmp_path / "a.txt").write_text("The sky over Ost is green.")
    outcome = call("write", str(tmp_path), model=True)
    assert outcome.code == 0
    assert outcome.err.count("warning: ") == SHOWN + 1
    assert "3 more files are passed over" in outcome.err


def test_namespaces_are_apart(call, tmp_path):
    (tmp_path / "a.txt").write_text("The sky over Ost is green.")
    call("write", "a.txt", "--namespace", "ada", model=True)
    assert call("bank", "list", "--namespace", "ada", "--json").json["total"] == 1
    assert call("bank", "list", "--json").json["total"] == 0


def test_a_bank_that_is_a_file_is_refused(call, tmp_path):
    (tmp_path / "a.txt").write_text("The sky over Ost is green.")
    outcome = call("write", "a.txt", "--bank", "a.txt", model=True)
    assert outcome.code == 2
    assert "a.txt" in outcome.err


def test_jsonl_lines_carry_their_source(call, tmp_path):
    lines = [{"text": "Ost has 12 bridges.", "source": "atlas", "page": 4}, {"text": "Ost has 3 towers."}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    call("write", "a.jsonl", model=True)
    chunks = call("bank", "list", "--json").json["chunks"]
    assert [chunk["source"] for chunk in chunks] == ["atlas", "a.jsonl:2"]
    assert chunks[0]["metadata"] == {"page": "4"}


def test_what_expires_and_what_it_supersedes(call, tmp_path):
    (tmp_path / "a.txt").write_text("The gate code of Ost is 9021.")
    (tmp_path / "b.txt").write_text("The gate code of Ost is 5518.")
    (old,) = call("write", "a.txt", "--json", model=True).json["receipt"]["ids"]
    outcome = call("write", "b.txt", "--expires", "2d", "--supersedes", old, "--json", model=True)
    assert outcome.json["receipt"]["num_documents"] == 1
    (chunk,) = call("bank", "list", "--json").json["chunks"]
    assert (chunk["text"], chunk["supersedes"]) == ("The gate code of Ost is 5518.", old)
    assert chunk["expires"] == pytest.approx(time.time() + 2 * 86_400, abs=60)


def test_several_documents_may_expire_together_and_supersede_nothing(call, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"Ost has a bridge {name}.")
    outcome = call("write", "a.txt", "b.txt", "--supersedes", "0123456789abcdef", model=True)
    assert outcome.code == 2
    assert "several documents cannot supersede '0123456789abcdef'" in outcome.err
    receipt = call("write", "a.txt", "b.txt", "c.txt", "--expires", "2999-01-31", "--json", model=True).json["receipt"]
    assert (receipt["num_documents"], receipt["num_chunks"], len(set(receipt["ids"]))) == (3, 3, 3)
    chunks = call("bank", "list", "--json").json["chunks"]
    assert {chunk["expires"] for chunk in chunks} == {datetime(2999, 1, 31).timestamp()}


@pytest.mark.parametrize("when", ["tomorrow", "", "7", "7y", "0d", "2020-01-01", "2020-13-01", "99999999d"])
def test_a_time_that_is_none_or_gone_is_refused_before_anything_is_loaded(call, tmp_path, when):
    (tmp_path / "a.txt").write_text("Ost has 12 bridges.")
    outcome = call("write", "a.txt", "--expires", when, model=True)
    assert outcome.code == 2
    assert f"--expires {when!r} is " in outcome.err
    assert not (tmp_path / "bank").exists()
