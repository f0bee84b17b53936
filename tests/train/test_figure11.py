"""The figure of six stages: trained where they are missing, and read out of the log as they were written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import remanence.lm.lm as lm_module
from remanence.errors import InputError
from remanence.train.examples.corpora import Corpora
from remanence.train.memory3 import continual, figure11, nano, warmup
from remanence.train.recipes.nano_text import nano_text
from tests.train.tiny_runs import PARAGRAPHS, smaller


def test_every_stage_is_trained_once_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)  # random tiny weights prove nothing
    for module in (continual, warmup):
        monkeypatch.setattr(module, "ENDS_ROWS", 4)
    monkeypatch.setattr(figure11, "ENDS_ROWS", 4)
    monkeypatch.setattr(
        nano, "load_or_skip", lambda *given: Corpora(paragraphs=PARAGRAPHS, heldout_paragraphs=PARAGRAPHS)
    )
    recipe = smaller(nano_text())
    short = {part: (replace(getattr(recipe, part)[0], num_steps=25),) for part in ("warmup", "continual")}
    recipe = replace(recipe, **short)
    with pytest.raises(InputError, match="no finished stage 'warmup'"):
        figure11.collect(recipe, tmp_path)
    figure11.train_missing(recipe, None, tmp_path)
    lines = (tmp_path / "log.jsonl").read_text()
    figure11.train_missing(recipe, None, tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == lines, "what is done is not trained again"
    found = figure11.collect(recipe, tmp_path)
    assert found["systems"].keys() == figure11.NAMES.keys() == set(recipe.stages)
    log = [json.loads(line) for line in lines.splitlines()]
    ends = {told["stage"]: told for told in log if "loss_text_none_4" in told and told["step"] == 25}
    gain = ends["control"]["loss_text_none_4"] - ends["continual"]["loss_text_memory_4"]
    assert found["gains"]["control_to_memory_nats"] == pytest.approx(gain, abs=1e-4)
    scratch = ends["warmup"]["loss_text_none_4"] - ends["scratch"]["loss_text_memory_4"]
    assert found["gains"]["memory_from_scratch_nats"] == pytest.approx(scratch, abs=1e-4)
    assert [step for step, _ in found["systems"]["detached"]["curve"]] == [25]
    figure11.draw(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_a_crossing_is_where_memory_stays_below() -> None:
    control = [[25, 3.0], [50, 2.9], [75, 2.8], [100, 2.7]]
    assert figure11.crossing([[25, 3.1], [50, 2.8], [75, 2.9], [100, 2.6]], control) == 100
    assert figure11.crossing([[25, 3.1], [50, 2.8], [75, 2.7], [100, 2.6]], control) == 50
    assert figure11.crossing([[25, 3.1], [50, 2.8], [75, 2.9], [100, 2.8]], control) is None
