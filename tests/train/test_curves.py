"""The picture of a log; steps trained twice count once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remanence.errors import InputError
from remanence.train.core.curves import draw, read_log


def test_a_log_becomes_a_picture(tmp_path: Path) -> None:
    records = [
        {"step": 25, "stage": "warmup", "loss_answer": 3.0},
        {"step": 25, "stage": "warmup", "loss_answer": 2.0},
        {"step": 25, "stage": "continual", "loss_answer": 2.5},
        {"stage": "head", "layer": 1},
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_log(log)["warmup"][25]["loss_answer"] == 2.0
    draw(log, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        read_log(tmp_path / "nowhere")
