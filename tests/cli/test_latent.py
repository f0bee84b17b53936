"""The commands of latent memory, with the bundled adapter: small runs, and what is refused."""

from __future__ import annotations

import pytest

from remanence.cli.opening import model_for

SMALL = ("--tokens", "200", "--n", "2")


def test_the_bundled_model_has_its_adapter_by_another_name():
    assert model_for("mplus", "nano") == "nano-mplus"
    assert model_for("mplus:trained", "nano") == "nano-mplus"
    assert model_for("memory3", "nano") == "nano"
    assert model_for("mplus", "./mine") == "./mine"


def test_write_ask_why_and_forget(call, tmp_path):
    (tmp_path / "notes.txt").write_text("The lighthouse keeper is Odile Marsh.")
    known = ("--bank", "b", "--method", "mplus")
    assert call("write", "notes.txt", *known).code == 0
    assert list((tmp_path / "b" / "pools").iterdir())
    asked = call("ask", "Who is the lighthouse keeper?", *known, "--json").json
    assert [recall["text"] for recall in asked["recalled"]] == ["The lighthouse keeper is Odile Marsh."]
    assert call("why", "--bank", "b").code == 0
    assert call("doctor", "--deep", "--bank", "b", "--method", "mplus").code == 0
    assert call("bank", "forget", "--source", "notes.txt", "--bank", "b", "--yes").code == 0
    assert not list((tmp_path / "b" / "pools").iterdir()), "no model was loaded, and the pool is gone"
    assert "Odile" not in (tmp_path / "b" / "answers.jsonl").read_text()
    assert call("ask", "Who is the lighthouse keeper?", *known, "--json").json["recalled"] == []


def test_verify_and_stats_know_the_pool(call, tmp_path):
    (tmp_path / "notes.txt").write_text("The lighthouse keeper is Odile Marsh.")
    known = ("--bank", "b", "--method", "mplus")
    assert call("write", "notes.txt", *known).code == 0
    (file,) = (tmp_path / "b" / "pools").iterdir()
    assert call("bank", "stats", "--bank", "b", "--json").json["pool_bytes"] == file.stat().st_size
    report = call("bank", "verify", "--no-model", "--bank", "b", "--json").json
    assert (report["ok"], report["num_pools"]) == (True, 1)
    damaged = bytearray(file.read_bytes())
    damaged[-100] ^= 1
    file.write_bytes(damaged)
    found = call("bank", "verify", "--no-model", "--bank", "b")
    assert (found.code, "makes it again from the bank's texts" in " ".join(found.out.split())) == (1, True)


def test_an_unknown_id_to_leave_out_is_an_error_before_anything_is_answered(call, tmp_path):
    (tmp_path / "notes.txt").write_text("The lighthouse keeper is Odile Marsh.")
    assert call("write", "notes.txt", "--bank", "b").code == 0
    asked = call("ask", "Who is the lighthouse keeper?", "--bank", "b", "--without", "0123456789abcdef")
    assert (asked.code, "0123456789abcdef" in asked.err) == (2, True)


def test_retention_as_a_table_as_json_and_as_a_picture(call, tmp_path):
    made = call("eval", "retention", *SMALL, "--every", "100", "--plot", "curve.png", "--json").json
    assert set(made["systems"]) == {"mplus", "mplus_without_ltm", "sliding_window", "full_context", "memory3"}
    assert all(figures["curve"][0][0] == 0 for figures in made["systems"].values())
    assert (tmp_path / "curve.png").stat().st_size > 5000
    shown = call("eval", "retention", *SMALL, "--systems", "mplus")
    assert (shown.code, "mplus" in shown.out) == (0, True)


def test_recall_and_perplexity(call):
    made = call("eval", "ltm-recall", *SMALL, "--json").json
    assert set(made["recall"]) == {"writes", "rows", "attended", "recent", "random", "oracle"}
    assert call("eval", "ltm-recall", *SMALL, "--choices", "writes,random").code == 0
    made = call("eval", "perplexity", "--n", "3", "--fill", "100", "--json").json
    assert set(made["systems"]) == {"base", "fresh_pool", "full_pool", "full_pool_always_read"}
    assert call("eval", "perplexity", "--n", "2", "--fill", "100").code == 0


def test_a_retriever_that_is_not_there_is_named(call):
    outcome = call("eval", "ltm-recall", "--losses", "none.safetensors", *SMALL)
    assert outcome.code == 2
    assert "none.safetensors" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["eval", "retention", "--systems", "mplas"], "no system is called 'mplas'"),
        (["eval", "retention", "--tokens", "0"], "tokens is 0"),
        (["eval", "retention", "--plot", "curve.doc"], "is not a picture"),
        (["eval", "retention", "--distractors", "nowhere.txt", *SMALL], "nowhere.txt"),
        (["eval", "ltm-recall", "--choices", "best"], "there is no 'best'"),
        (["eval", "ltm-recall", "--drops", ""], "empty"),
        (["eval", "perplexity", "--n", "0"], "n is 0"),
        (["bench", "mplus", "--shape", "nanno"], "no shape is called 'nanno'"),
        (["train", "nano-mplus", "--stage", "warmup"], "nano-mplus has no stage 'warmup'"),
        (["ask", "Who?", "--method", "mplus", "--model", "tiny", "--bank", "b"], "no latent memory"),
    ],
)
def test_bad_input_is_one_line_and_code_2(call, tmp_path, arguments, reason):
    (tmp_path / "b").mkdir()
    outcome = call(*arguments)
    assert outcome.code == 2
    assert reason in outcome.err
    assert outcome.err.count("\n") == 1
