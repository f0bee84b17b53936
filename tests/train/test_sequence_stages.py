"""A tiny run on stored sequences: it learns, goes on bit for bit, and its loss is that of memories given one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import remanence.lm.lm as lm_module
from remanence.data.sequences import SequenceFolder
from remanence.errors import InputError
from remanence.lm.folders import BUNDLED
from remanence.lm.load import load
from remanence.lm.tiny import byte_tokenizer
from remanence.methods.memory3.method import Group, Memory3
from remanence.train.core import checkpoint
from remanence.train.core.fields import override
from remanence.train.examples.build_sequences import build
from remanence.train.examples.sequences import Loader, epoch_order
from remanence.train.export.card import CARD, described_stage
from remanence.train.export.publish import check_folder
from remanence.train.memory3.sequences import (
    SequenceRun,
    export_sequences,
    memory_config,
    reading_model,
    sequence_task,
    start_sequence_run,
)
from remanence.train.recipes.nano_mplus import nano_mplus
from remanence.train.recipes.sequences import continual_nano, warmup_nano
from tests.train.tiny_runs import run_stage
from tests.train.tiny_sequences import CUTTING, SHAPE, STEPS, begin_run, make, tiny


@pytest.fixture(autouse=True)
def _unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random tiny weights proves nothing; `prove` has its own tests."""
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("texts"))


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def masters(run: SequenceRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.optimizer.masters.items()}


def test_both_stages_lower_the_loss_and_a_model_comes_out(data: Path, tmp_path: Path) -> None:
    for recipe in (warmup_nano(), continual_nano()):
        run = begin_run(tiny(recipe), data, tmp_path)
        run_stage(run, "own")
        export_sequences(run)
    log = log_of(tmp_path)
    warm, read = ([line for line in log if line["stage"] == stage] for stage in ("warmup", "continual"))
    for lines in (warm, read):
        losses = [line["loss_text"] for line in lines if "loss_text" in line]
        assert len(losses) == STEPS
        assert losses[-1] < losses[0] - 0.05
    assert warm[0]["loss_text_none"] > warm[-1]["loss_text_none"] + 0.5
    assert {"step", "loss_text_none", "loss_text_memory"} <= read[0].keys()
    assert read[0]["step"] == 0
    assert read[0]["loss_text_none"] == warm[-1]["loss_text_none"], "it begins with the weights of the warm-up"
    told = json.loads((tmp_path / "run.json").read_text())
    assert [entry["stage"] for entry in told] == ["warmup", "continual"]
    assert told[0]["data"] == {path.name: path.stat().st_size for path in data.glob("*.arrow")}
    assert (tmp_path / "curves.png").exists()
    assert {path.name for path in check_folder(tmp_path / "export")} >= {"README.md", "remanence.json"}
    assert described_stage(tmp_path / "export") == "continual", "not of the warm-up, which was there before"
    lm = load(tmp_path / "export")
    assert lm.settings["memory3"]["kept_tokens"] == 4
    assert (lm.bos, lm.eos) == ([1], frozenset({2}))
    for name, tensor in lm.model.state_dict().items():
        assert torch.equal(tensor, run.optimizer.masters[name].bfloat16().float()), name


@pytest.mark.parametrize("recipe", [warmup_nano, continual_nano])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_equals_uninterrupted(data: Path, tmp_path: Path, recipe, dtype: str) -> None:
    made = replace(tiny(recipe()), after=None, dtype=dtype, parts=2)
    whole, first = begin_run(made, data, tmp_path / "whole"), begin_run(made, data, tmp_path / "parts")
    run_stage(whole, "own")
    run_stage(first, "own", 5)
    second = begin_run(made, data, tmp_path / "parts")
    run_stage(second, "own", resume=True)
    assert second.step == STEPS
    for name, tensor in masters(whole).items():
        assert torch.equal(tensor, second.optimizer.masters[name]), name


def test_the_loss_of_a_stored_batch_is_that_of_memories_given_chunk_by_chunk(data: Path, tmp_path: Path) -> None:
    recipe = replace(tiny(continual_nano()), after=None)
    run = begin_run(recipe, data, tmp_path)
    run.model.double()
    found, num_tokens = sequence_task(run).loss(3)
    batch, method = Loader(run.stored, 6, 0, references=True).batch(3), Memory3(memory_config(recipe))
    lm, T = reading_model(run), recipe.sequence_tokens
    assert num_tokens == 6 * T
    with torch.no_grad():
        memories = [method.write(lm, row) for row in batch.references]
        groups = [[Group(c * 16, tuple(row[max(0, c - 2) : c + 1])) for c in range(4)] for row in memories]
        prefix = method.prefix(lm, groups, [T] * 6)
        logits_BTV = lm.forward(batch.ids_BT, prefix, prefix.offset_tokens + torch.arange(T)[None].expand(6, -1))
        slow = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), batch.ids_BT[:, 1:].flatten())
    assert float(found.detach()) == pytest.approx(float(slow), abs=1e-6)


def test_a_step_in_parts_has_the_gradient_of_the_whole(data: Path, tmp_path: Path) -> None:
    norms, losses = [], []
    for parts in (1, 2, 3):
        run = begin_run(
            replace(tiny(continual_nano()), after=None, parts=parts, num_steps=1), data, tmp_path / str(parts)
        )
        run_stage(run, "own")
        (line,) = [line for line in log_of(tmp_path / str(parts)) if "norm" in line]
        norms.append(line["norm"])
        losses.append(line["loss_text"])
        assert run.tokens == 6 * 64
    assert norms == pytest.approx([norms[0]] * 3, abs=2e-4)
    assert losses == pytest.approx([losses[0]] * 3, abs=2e-4)


def test_a_batch_is_the_same_whatever_came_before_it_and_an_epoch_reads_everything_once(data: Path) -> None:
    folder = SequenceFolder(data)
    size = len(folder)
    first, other = (Loader(folder, 5, 7, references=True) for _ in range(2))
    in_order = [first.batch(number) for number in range(4)]
    for number in (3, 0, 2, 1):
        found = other.batch(number)
        assert torch.equal(found.ids_BT, in_order[number].ids_BT)
        assert found.references == in_order[number].references
    numbers = [n for number in range(-(-2 * size // 5)) for n in first.numbers(number)]
    assert sorted(numbers[:size]) == sorted(numbers[size : 2 * size]) == list(range(size))
    assert numbers[:size] != numbers[size : 2 * size]
    assert not (epoch_order(7, 0, size) == epoch_order(8, 0, size)).all()
    row = folder.rows([first.numbers(1)[2]])[0]
    assert in_order[1].ids_BT[2].tolist() == row.ids.tolist()
    assert in_order[1].references[2] == folder.reference_ids(row.references)
    assert Loader(folder, 5, 7, references=False).batch(1).references == []


def test_what_goes_wrong_while_reading_ahead_is_raised_where_the_batch_is_asked_for(data: Path, monkeypatch) -> None:
    loader = Loader(SequenceFolder(data), 2, 0, references=True)
    loader.batch(0)
    monkeypatch.setattr(Loader, "read", lambda self, number: (_ for _ in ()).throw(InputError(f"no {number}", "x")))
    loader.batch(1)
    with pytest.raises(InputError, match="no 2"):
        loader.batch(2)


def test_a_uri_is_read_as_the_folder_is(data: Path, tmp_path: Path) -> None:
    made = replace(tiny(continual_nano()), after=None)
    runs = [begin_run(made, place, tmp_path / str(i)) for i, place in enumerate((data, data.as_uri()))]
    assert all(run.heldout is not None and len(run.heldout) > 0 for run in runs)
    one, other = (sequence_task(run).loss(0)[0] for run in runs)
    assert torch.equal(one, other)


def test_what_does_not_fit_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    good = tiny(continual_nano())
    for recipe, told in (
        (
            replace(good, sequence_tokens=48),
            r"sequence_tokens 64, the recipe has 48 -> use --set sequence_tokens=64",
        ),
        (
            replace(good, shape=replace(SHAPE, vocab_size=100)),
            r"259 entries, the model 100 -> use --set shape\.vocab",
        ),
        (replace(good, memory=replace(good.memory, chunk_tokens=8)), r"memory\.chunk_tokens 16, the recipe has 8"),
    ):
        with pytest.raises(InputError, match=told):
            start_sequence_run(recipe, data, tmp_path)
    with pytest.raises(InputError, match=r"begins with the weights of warmup, which .* does not hold"):
        run_stage(begin_run(good, data, tmp_path), "own")
    with pytest.raises(InputError, match=r"nano.* have different tokenizers"):
        start_sequence_run(good, data, tmp_path, BUNDLED["nano"])
    with pytest.raises(InputError, match="6 rows cannot be divided into 4 parts"):
        replace(good, parts=4)
    with pytest.raises(InputError, match=r"exceed the model's 256 positions -> raise shape\.max_positions"):
        replace(good, sequence_tokens=224)


def test_a_run_begins_with_a_model_that_is_given(data: Path, tmp_path: Path) -> None:
    made = replace(tiny(warmup_nano()), num_steps=1)
    run = begin_run(made, data, tmp_path / "a")
    run_stage(run, "own")
    export_sequences(run)
    given = start_sequence_run(tiny(continual_nano()), data, tmp_path / "b", tmp_path / "a" / "export")
    assert all(torch.equal(run.optimizer.masters[n].bfloat16().float(), t) for n, t in masters(given).items())
    run_stage(given, "own", 1)
    assert checkpoint.load(tmp_path / "b" / "continual").progress["step"] == 1


def test_memory_is_what_changes_the_loss_and_without_writes_the_gradient(data: Path, tmp_path: Path) -> None:
    good = replace(tiny(continual_nano()), after=None)
    gradients, found = [], []
    for number, recipe in enumerate((good, replace(good, writes=False), replace(good, reads=False))):
        run = begin_run(recipe, data, tmp_path / str(number))
        loss = sequence_task(run).loss(0)[0]
        loss.backward()
        found.append(float(loss.detach()))
        gradients.append(run.model.model.layers[0].self_attn.k_proj.weight.grad.clone())
    assert found[0] == found[1] != found[2]
    assert not torch.equal(gradients[0], gradients[1])


def test_a_control_is_exported_beside_the_model_and_a_card_of_ones_own_stays(data: Path, tmp_path: Path) -> None:
    for stage in ("continual", "control"):
        run = begin_run(replace(tiny(continual_nano()), stage=stage, after=None, num_steps=1), data, tmp_path)
        run_stage(run, "own")
        export_sequences(run)
    assert described_stage(tmp_path / "export") == "continual"
    assert described_stage(tmp_path / "export-control") == "control"
    (tmp_path / "export-control" / CARD).write_text("mine")
    export_sequences(run)
    assert (tmp_path / "export-control" / CARD).read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", ".", "Warmup", "a b", "export", "tokenizer", "export-a"])
@pytest.mark.parametrize("recipe", [warmup_nano, nano_mplus])
def test_a_stage_names_no_other_folder(recipe, name: str) -> None:
    for field in ("stage", "after"):
        with pytest.raises(InputError, match=f"{field} is "):
            override(recipe(), [f"{field}={name}"])
    assert override(recipe(), ["stage=control-2"]).stage == "control-2"


def test_a_step_that_does_not_fit_is_told_of_parts(data: Path, tmp_path: Path) -> None:
    for parts, told in ((1, "parts=2"), (2, "parts=3"), (6, "rows or sequence_tokens")):
        made = replace(tiny(warmup_nano()), parts=parts)
        assert told in sequence_task(begin_run(made, data, tmp_path)).oom_hint


def test_a_tokenizer_that_cannot_be_copied_leaves_no_part_of_it(tmp_path: Path) -> None:
    data = make(tmp_path / "texts")
    (data / "tokenizer").rename(data / "elsewhere")
    for _ in range(2):
        with pytest.raises(InputError, match="tokenizer of the sequences"):
            begin_run(tiny(warmup_nano()), data, tmp_path / "run")
    (data / "elsewhere").rename(data / "tokenizer")
    assert begin_run(tiny(warmup_nano()), data, tmp_path / "run").step == 0


def test_kept_sequences_of_another_making_are_neither_read_nor_left(tmp_path: Path) -> None:
    data = make(tmp_path)
    (data / "sequences.json").rename(tmp_path / "kept.json")  # as if the making had been stopped
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "some.jsonl").rename(other / "some.jsonl")
    build(other, data, byte_tokenizer(), CUTTING)
    assert begin_run(tiny(warmup_nano()), data, tmp_path / "run").heldout is None
    build(other / "some.jsonl", data / "valid", byte_tokenizer(), replace(CUTTING, chunk_tokens=8))
    with pytest.raises(InputError, match=r"valid' have memory\.chunk_tokens 8, the recipe has 16"):
        begin_run(tiny(warmup_nano()), data, tmp_path / "run")


@pytest.mark.parametrize("name", ["some.jsonl", "valid.jsonl"])
def test_files_without_text_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "first.jsonl").write_text('{"text": "Ada went home. "}\n' if name[0] == "v" else "")
    (tmp_path / "texts" / name).write_text('{"text": " "}\n')
    with pytest.raises(InputError, match=f"there is no text in .*{name}"):
        build(tmp_path / "texts", tmp_path / "out", byte_tokenizer(), CUTTING)
    assert not (tmp_path / "out").exists()
