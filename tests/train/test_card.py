"""The card that an export writes says what the log and `run.json` say; one that is there is left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import remanence.lm.lm as lm_module
from remanence.train.export.publish import check_folder
from remanence.train.export.search_head import HeadRecipe
from remanence.train.memory3.nano import export_nano, start_run
from remanence.train.mplus.stages import export_mplus
from remanence.train.recipes.nano import nano
from remanence.train.recipes.nano_mplus import nano_mplus
from tests.train.tiny_runs import begin_latent, run_stage, smaller, smaller_latent


@pytest.fixture(autouse=True)
def _unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)  # random tiny weights prove nothing


def test_a_model_is_described_by_its_own_log(tmp_path: Path) -> None:
    recipe, out = replace(smaller(nano()), eval_every=2), tmp_path / "ada"
    for stage in ("warmup", "continual"):
        run = start_run(recipe, None, out)
        run.log_every = 2
        run_stage(run, stage, 2)
    head = HeadRecipe(layers=(0, 1), dim=8, groups=10, heldout_groups=4, steps=5, batch=8)
    export_nano(start_run(recipe, None, out), head)
    card = (out / "export" / "README.md").read_text()
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    told = {record["stage"]: record for record in log if "tokens" in record}
    for stage in ("warmup", "continual"):
        assert f"| {stage} | 2 | {told[stage]['tokens']:,} | {told[stage]['seconds']:,} |" in card
    measured = next(record for record in log if "loss_memory8" in record)
    assert f"| continual | `loss_memory8` | {measured['loss_memory8']:g} |" in card
    assert "| kept_tokens | 8 |" in card
    assert '| method | "memory3" |' in card
    assert card.startswith("---\nlicense: unknown\n")
    assert "# ada\n" in card
    assert json.loads(card.partition("```json\n")[2].partition("```")[0])["shape"]["width"] == recipe.shape.width
    made = json.loads((out / "run.json").read_text())
    assert made[0]["commit"] in card
    assert {path.name for path in check_folder(out / "export")} >= {"model.safetensors", "README.md", "tokenizer.json"}
    (out / "export" / "README.md").write_text("mine")
    export_nano(start_run(recipe, None, out), head)
    assert (out / "export" / "README.md").read_text() == "mine"


def test_an_adapter_names_its_method_and_its_base(tmp_path: Path) -> None:
    run, _ = begin_latent(tmp_path, smaller_latent(nano_mplus()))
    export_mplus(run, tmp_path / "adapter", "tiny")  # type: ignore[arg-type]
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert '| method | "mplus" |' in card
    assert '| base | "tiny" |' in card
    assert 'rm.Session(lm, "bank", "mplus")' in card
    assert check_folder(tmp_path / "adapter")
