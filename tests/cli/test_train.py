from __future__ import annotations

import json
from typing import Any

import pytest

from remanence.train import start


def test_bad_input_is_one_line_and_code_2(call):
    for wrong in (["nonsense"], ["--stage", "nonsense"]):
        outcome = call("train", *wrong)
        assert outcome.code == 2
        assert "is called 'nonsense'" in outcome.err


@pytest.mark.parametrize("stage", ["export", "retrievers"])
def test_what_needs_a_trained_adapter_says_so(call, stage):
    outcome = call("train", "nano-mplus", "--stage", stage, "--out", "nothing")
    assert (outcome.code, "'nothing' holds no checkpoint" in outcome.err) == (2, True)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_log_is_shown_and_as_json_the_final_figures_alone(call, tmp_path, monkeypatch, options):
    records: list[dict[str, Any]] = [
        {"stage": "warmup", "step": 1, "loss": 3.0, "exact": 0.1},
        {"stage": "warmup", "step": 2, "loss": 2.0},
    ]

    def log(*_: Any) -> None:
        for record in records:
            with (tmp_path / "log.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record))

    monkeypatch.setattr(start, "start_run", lambda *_: None)
    monkeypatch.setattr(start, "run_stage", log)
    outcome = call("train", "--stage", "warmup", "--out", ".", *options)
    if not options:
        assert [json.loads(line) for line in outcome.out.splitlines()] == records
        return
    figures = {"stage": "warmup", "step": 2, "loss": 2.0, "exact": 0.1}
    assert outcome.json == {"recipe": "nano", "out": ".", "stages": {"warmup": figures}}
    assert len(outcome.err.splitlines()) == 2
