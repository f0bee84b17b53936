from __future__ import annotations

import json

import pytest

FEW = ("--n", "3", "--bank-size", "6", "--max-tokens", "3")


@pytest.mark.parametrize("task", ["facts", "squad"])
def test_every_task_takes_its_own_and_the_common_options(call, task):
    text = call("eval", task, "--help").out
    assert all(option in text for option in ("--n", "--systems", "--details", "--model", "--method", "--seed"))
    assert ("--data" in text) == (task == "squad")


def test_facts_as_json_and_as_a_table(call, tmp_path):
    made = call("eval", "facts", *FEW, "--json", "--details", "details.jsonl", model=True).json
    assert set(made["systems"]) == {"plain", "memory3", "retrieved_text", "full_context"}
    assert made["n"] == len((tmp_path / "details.jsonl").read_text().splitlines()) == 3
    shown = call("eval", "facts", *FEW, "--systems", "plain,METHOD", "--method", "memory3:dense", model=True)
    assert (shown.code, shown.err) == (0, "")
    assert "memory3:dense" in shown.out
    assert "recall at 5" in shown.out


def test_squad(call, tmp_path):
    record = {"context": "The pier has 7 lamps.", "qas": [{"question": "How many lamps?", "answers": [{"text": "7"}]}]}
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [record]}]}))
    made = call("eval", "squad", "--data", "squad.json", "--max-tokens", "2", "--json", model=True).json
    assert (made["task"], made["n"]) == ("squad", 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["squad"], "--data"),
        (["squad", "--data", "nowhere.json"], "nowhere.json"),
        (["facts", "--facts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["facts", "--systems", "memory4"], "did you mean 'memory3'"),
        (["facts", "--n", "0"], "n is 0"),
        (["facts", "--details", "no/folder.jsonl"], "no/folder.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_code_2(call, arguments, reason):
    outcome = call("eval", *arguments, model=True)
    assert outcome.code == 2
    assert reason in outcome.err
    assert outcome.err.count("\n") == 1
