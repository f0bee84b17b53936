from __future__ import annotations

import json

import pytest

from .conftest import TEXTS


def test_stats(call, bank):
    stats = call("bank", "stats", "--json").json
    assert stats["num_chunks"] == len(TEXTS)
    assert sum(stats["memories"].values()) == len(TEXTS)
    assert "tiny with memory3" in call("bank", "stats").out


def test_list(call, bank):
    listed = call("bank", "list", "--json").json
    assert [chunk["text"] for chunk in listed["chunks"]] == list(TEXTS.values())
    assert [chunk["source"] for chunk in call("bank", "list", "--source", "gate.txt", "--json").json["chunks"]] == [
        "gate.txt"
    ]
    outcome = call("bank", "list", "--limit", "1", "--offset", "1")
    assert "4417" in outcome.out
    assert "1 of 3; go on with --offset 2" in outcome.err


@pytest.mark.parametrize("kind", ["lexical", "hybrid"])
def test_search(call, bank, kind):
    found = call("bank", "search", "the code of the garden gate", "--kind", kind, "--json", model=True).json
    assert [hit["source"] for hit in found["hits"]] == ["gate.txt"]
    assert found["hits"][0]["found_by"] == {"lexical": 1}
    assert "BM25 alone" in found["retrieval"]
    assert "4417" in call("bank", "search", "garden gate", "--kind", kind, model=True).out


def test_search_for_nothing(call, bank):
    assert "Nothing is about this." in call("bank", "search", "opera", "--kind", "lexical").out


def test_show(call, bank, ids):
    shown = call("bank", "show", ids["gate.txt"]).out
    assert TEXTS["gate.txt"] in shown
    assert "gate.txt, characters 0 to 36" in shown
    (chunk,) = call("bank", "show", ids["gate.txt"], "--json").json["chunks"]
    assert (chunk["text"], chunk["num_recalls"]) == (TEXTS["gate.txt"], 0)


def test_forget_asks_and_a_pipe_needs_yes(call, bank, ids):
    refused = call("bank", "forget", ids["gate.txt"])
    assert refused.code == 2
    assert "add --yes" in refused.err
    assert call("bank", "list", "--json").json["total"] == 3
    outcome = call("bank", "forget", ids["gate.txt"], "--yes")
    assert outcome.code == 0
    assert "compact" in outcome.out
    assert call("bank", "list", "--json").json["total"] == 2


def test_forget_a_whole_document(call, bank):
    receipt = call("bank", "forget", "--source", "ferry.txt", "--yes", "--json").json
    assert (len(receipt["ids"]), receipt["exact"]) == (1, True)
    assert call("bank", "forget", "--source", "ferry.txt", "--yes").code == 2


def test_an_unknown_id_forgets_nothing(call, bank, ids):
    outcome = call("bank", "forget", ids["gate.txt"], "0123456789abcdef", "--yes")
    assert outcome.code == 2
    assert "0123456789abcdef" in outcome.err
    assert call("bank", "list", "--json").json["total"] == 3


def test_compact_takes_forgotten_bytes_from_the_disk(call, bank, ids):
    call("bank", "forget", ids["gate.txt"], "--yes")
    receipt = call("bank", "compact", "--json").json
    assert receipt["bytes_gone"]
    assert not any(b"garden" in path.read_bytes() for path in bank.rglob("*") if path.is_file())


def test_verify(call, bank):
    report = call("bank", "verify", "--json", model=True).json
    assert report["ok"]
    assert report["num_recomputed"] == 3
    assert "All is as it was written" in call("bank", "verify", "--no-model").out


def test_verify_finds_damage(call, bank):
    largest = max((path for path in bank.rglob("*.lance") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    outcome = call("bank", "verify", "--no-model", "--json")
    assert outcome.code == 1
    assert not outcome.json["ok"]
    assert "error: " in call("bank", "verify", "--no-model").err


def test_export_and_import(call, bank, tmp_path):
    assert call("bank", "export", "all.jsonl", "--json").json == {"path": "all.jsonl", "num_chunks": 3}
    assert [json.loads(line)["text"] for line in (tmp_path / "all.jsonl").read_text().splitlines()] == list(
        TEXTS.values()
    )
    added = call("bank", "import", "all.jsonl", "--bank", "copy", "--json").json
    assert (added["num_chunks"], added["num_new"]) == (3, 3)
    known = call("bank", "import", "all.jsonl").out
    assert "Added 0 chunks of 3" in known
    assert "migrate" not in known
    assert "bank migrate --bank third" in " ".join(call("bank", "import", "all.jsonl", "--bank", "third").out.split())
    assert call("bank", "import", "missing.jsonl").code == 2


def test_migrate_to_another_method(call, bank):
    dense = ["--method", "memory3:dense", "--json"]
    assert call("ask", "What is the code?", *dense, model=True).code == 2
    moved = call("bank", "migrate", "--drop-old", *dense, model=True).json
    assert moved == {"num_chunks": 3, "num_dropped": 3}
    assert call("ask", "What is the code of the garden gate?", *dense, model=True).json["recalled"]
