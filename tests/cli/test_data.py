from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from remanence.data.sequences import SequenceFolder
from remanence.train.examples.tokenizer import fingerprint, load_tokenizer

TEXTS = [" ".join(f"{name} rowed to the {place}." for place in "harbour island bridge lighthouse".split()) for name in
         "Ada Bob Cleo Dora Emil Fern".split()]  # fmt: skip


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "one.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "valid.jsonl").write_text(lines)
    (folder / "two.txt").write_text(" ".join(TEXTS))
    return folder


def test_sequences_are_made_with_a_part_that_is_kept(call, texts):
    made = call("data", "sequences", "--data", "texts", "--out", "s", "--sequence-tokens", "64", "--json", model=True)
    assert made.code == 0, made.err
    train, valid = made.json["train"], made.json["valid"]
    assert (train["sequence_tokens"], train["chunk_tokens"], train["overlap_limit"]) == (64, 64, 0.9)
    found = SequenceFolder(texts.parent / "s", fingerprint(load_tokenizer(texts.parent / "s" / "tokenizer")))
    tokens = sum(len(text.encode()) + 2 for text in [*TEXTS, " ".join(TEXTS)])
    assert len(found) + train["left_out"] == tokens // 64
    assert {row.source for row in found.rows(range(len(found)))} <= {f"one.jsonl.gz#{i}" for i in range(1, 7)} | {
        "two.txt#1"
    }
    assert len(SequenceFolder(texts.parent / "s" / "valid")) == valid["num_sequences"] > 0
    shown = call("data", "sequences", "--data", "texts/two.txt", "--out", "t", "--sequence-tokens", "64", model=True)
    assert "sequences of 64 tokens" in shown.out


def test_bad_input_is_one_line_and_code_2(call, texts):
    (texts / "bad.jsonl").write_text('{"text": "Ada"}\nnonsense\n')
    for arguments, told in (
        (["--data", "nothing"], "'nothing' does not exist"),
        (["--data", "texts", "--sequence-tokens", "64"], "line 2 has no text"),
        (["--data", "texts/two.txt", "--sequence-tokens", "100"], "do not fall into chunks of 64"),
        (["--data", "texts/two.txt", "--sequence-tokens", "6400"], "not one sequence of 6400"),
        (["--data", "texts/two.txt", "--model", "nonsense"], "the tokenizer of 'nonsense' cannot be loaded"),
    ):
        outcome = call("data", "sequences", "--out", "s", "--model", "tiny", *arguments)
        assert (outcome.code, told in outcome.err, outcome.err.count("\n")) == (2, True, 1), outcome.err
    skipped = ["--data", "texts", "--sequence-tokens", "64", "--damaged", "skip", "--out", "s"]
    assert "1 line was skipped" in call("data", "sequences", *skipped, model=True).err
    again = call("data", "sequences", *skipped, model=True)
    assert (again.code, "holds sequences already" in again.err) == (2, True)
    (texts / "valid").mkdir()
    (texts / "valid.jsonl").rename(texts / "valid" / "valid.jsonl")
    kept = call("data", "sequences", "--data", "texts/valid", "--out", "u", model=True)
    assert "only files that are held out for evaluation" in kept.err
