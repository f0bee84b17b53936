"""The card that an export writes says what the log and `run.json` say; one that is there is left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import remanence.lm.lm as lm_module
from remanence.train.latent_export import export_latent
from remanence.train.publish import check_folder
from remanence.train.recipes.nano import nano
from remanence.train.recipes.nano_mplus import nano_mplus
from remanence.train.retrieval import HeadRecipe
from remanence.train.start import finish, run_stage, start_run
from tests.train.tiny_runs import begin_latent, smaller, smaller_latent


@pytest.fixture(autouse=True)
def _unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)  # random tiny weights prove nothing


def test_a_model_is_described_by_its_own_log(tmp_path: Path) -> None:
    recipe, out = replace(smaller(nano()), eval_every=2), tmp_path / "ada"
    for stage in ("warmup", "continual"):
        run = start_run(recipe, None, out)
        run.log_every = 2
        run_stage(run, stage, 2, False)  # type: ignore[arg-type]
    head = HeadRecipe(layers=(0, 1), dim=8, groups=10, heldout_groups=4, steps=5, batch=8)
    finish(start_run(recipe, None, out), head)
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
    finish(start_run(recipe, None, out), head)
    assert (out / "export" / "README.md").read_text() == "mine"


def test_an_adapter_names_its_method_and_its_base(tmp_path: Path) -> None:
    run, _ = begin_latent(tmp_path, smaller_latent(nano_mplus()))
    export_latent(run, tmp_path / "adapter", "tiny")  # type: ignore[arg-type]
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert '| method | "mplus" |' in card
    assert '| base | "tiny" |' in card
    assert 'rm.Session(lm, "bank", "mplus")' in card
    assert check_folder(tmp_path / "adapter")
