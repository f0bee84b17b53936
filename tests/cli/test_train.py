from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from remanence.errors import InputError
from remanence.lm import lm as lm_module
from remanence.train.core import stages
from remanence.train.core.fields import leaves, override
from remanence.train.memory3 import nano
from remanence.train.recipes import RECIPES, recipe_of
from remanence.train.recipes.sequences import warmup_nano
from remanence.train.trainers import TRAINERS
from tests.train.tiny_sequences import make, tiny


def test_bad_input_is_one_line_and_code_2(call):
    for wrong, told in (
        (["nonsense"], "no recipe is called 'nonsense'"),
        (["--stage", "nonsense"], "nano has no stage 'nonsense'"),
        (["--at", "70b"], "nano has no size '70b' -> use --at nano"),
        (["retrofit", "--dry-run", "--start", "nothing"], "the shape of 'nothing' is not known"),
        (["mplus/stage2", "--out", "nothing"], "stage2 begins with the weights of stage1, which 'nothing' does not"),
        (["retrofit"], "no model to begin with -> give --start"),
    ):
        outcome = call("train", *wrong)
        assert (outcome.code, told in outcome.err) == (2, True)


def test_every_recipe_is_made_at_its_sizes_and_has_a_kind():
    for name, sizes in RECIPES.items():
        for size, function in sizes.items():
            recipe = recipe_of(name, size)
            assert recipe == function()
            assert type(recipe) in TRAINERS
            assert override(recipe, []) == recipe


@pytest.mark.parametrize("stage", ["export", "retrievers"])
def test_what_needs_a_trained_adapter_says_so(call, stage):
    outcome = call("train", "nano-mplus", "--stage", stage, "--out", "nothing")
    assert (outcome.code, "'nothing' holds no checkpoint" in outcome.err) == (2, True)


def test_recipes_are_listed_and_their_fields_set(call):
    shown = call("train", "--list").out
    assert "nano-mplus" in shown
    assert call("train", "--list", "--json").json["nano"]["shape"]["width"] == 256
    for wrong, told in (
        ("shape.widht=128", "did you mean 'width'?"),
        ("shape.width=wide", "Input should be a valid integer"),
        ("shape", "sets no field"),
    ):
        outcome = call("train", "nano", "--set", wrong)
        assert (outcome.code, told in " ".join(outcome.err.split())) == (2, True)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_log_is_shown_and_as_json_the_final_figures_alone(call, tmp_path, monkeypatch, options):
    records: list[dict[str, Any]] = [
        {"stage": "warmup", "step": 1, "loss": 3.0, "exact": 0.1},
        {"stage": "warmup", "step": 2, "loss": 2.0},
    ]

    def log(*_: Any, **__: Any) -> None:
        for record in records:
            with (tmp_path / "log.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record))

    monkeypatch.setattr(nano, "start_run", lambda *_, **__: SimpleNamespace(log_sinks=(), recipe=recipe_of("nano")))
    monkeypatch.setattr(stages, "run_stage", log)
    outcome = call("train", "--stage", "warmup", "--out", ".", *options)
    if not options:
        assert [json.loads(line) for line in outcome.out.splitlines()] == records
        return
    figures = {"stage": "warmup", "step": 2, "loss": 2.0, "exact": 0.1}
    assert outcome.json == {"recipe": "nano", "out": ".", "stages": {"warmup": figures}}
    assert len(outcome.err.splitlines()) == 2


def test_a_recipe_with_other_fields_differs_in_these_alone():
    recipe = recipe_of("nano")
    changed = override(recipe, ["shape.width=128", "warmup.1.squad=0", 'stages=["warmup"]', "continual.0.slots=null"])
    assert (changed.shape.width, changed.warmup[1].squad, changed.stages) == (128, 0.0, ("warmup",))
    assert changed.continual[0].slots is None
    assert changed.warmup[0] == recipe.warmup[0]
    latent = override(recipe_of("nano-mplus"), ["method.write_rows=32", "base=tiny"])
    assert (latent.method["write_rows"], latent.base) == (32, "tiny")
    assert leaves(asdict(changed))["shape.width"] == 128
    assert override(recipe, [f"{path}={json.dumps(value)}" for path, value in leaves(asdict(recipe)).items()]) == recipe
    with pytest.raises(InputError, match="there is no field '7'"):
        override(recipe, ["warmup.7.squad=0"])
    with pytest.raises(InputError, match="it has no fields"):
        override(recipe, ["seed.x=1"])
    for wrong in ("seed=null", "shape.head_width=wide", "warmup.0.passages=[1]", 'stages=["warmpu"]', "clip_norm=NaN"):
        with pytest.raises(InputError):
            override(recipe, [wrong])


def test_running_text_is_trained_on_and_needs_its_sequences(call, tmp_path, monkeypatch):
    outcome = call("train", "memory3/continual")
    assert (outcome.code, "is trained on a folder of sequences" in outcome.err) == (2, True)
    outcome = call("train", "memory3/warmup", "--data", "nothing")
    assert (outcome.code, "'nothing' holds no finished sequences" in outcome.err) == (2, True)
    dry = call("train", "memory3/continual", "--at", "2b", "--dry-run", "--json").json
    assert (dry["parameters"], dry["stages"]["continual"]["steps"]) == (2_819_971_200, 28_610)
    assert "119,999,037,440 tokens" in call("train", "memory3/continual", "--at", "2b", "--dry-run").out
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)
    make(tmp_path)
    settings = [f"--set={path}={json.dumps(value)}" for path, value in leaves(asdict(tiny(warmup_nano()))).items()]
    settings = [each for each in settings if each.split("=")[1] not in ("stage", "after", "reads")]
    for name in ("warmup", "continual"):
        given = ("--data", (tmp_path / "sequences").as_uri(), "--out", "run", "--steps", "2", "--json")
        outcome = call("train", f"memory3/{name}", *given, *settings)
        assert outcome.code == 0, outcome.err
        assert outcome.json["stages"][name]["step"] == 2
        assert outcome.json["stages"]["export"]["of"] == name
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()
