"""A tiny run of both stages: it learns, it resumes bit for bit, and its checkpoints survive a crash."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

import remanence.lm.lm as lm_module
from remanence.errors import InputError
from remanence.lm.load import load
from remanence.train.core import checkpoint, loop
from remanence.train.core.losses import ANSWER, TEXT, answer_losses, exact_answers, targets
from remanence.train.examples.corpora import Corpora
from remanence.train.examples.mixture import book_example
from remanence.train.export.model import export
from remanence.train.export.search_head import HeadRecipe
from remanence.train.memory3 import continual, warmup
from remanence.train.memory3.nano import export_nano, load_or_train_tokenizer, start_run
from remanence.train.memory3.warmup import NanoRun, warmup_task
from remanence.train.recipes.nano import NanoPhase, NanoRecipe, nano
from tests.train.tiny_runs import SHAPE, begin, losses, run_stage, smaller

TINY = NanoRecipe(
    shape=SHAPE,
    warmup=(NanoPhase(6, 4, 96, (1, 1), 1, drill=0.3), NanoPhase(6, 4, 128, (1, 2), 2)),
    continual=(NanoPhase(4, 3, 64, (1, 2), 1, slots=None, plain_tokens=96), NanoPhase(4, 3, 64, (2, 2), 2, slots=4)),
    tokenizer_groups=40,
    warmup_steps=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a trained tokenizer, to be copied from."""
    folder = tmp_path_factory.mktemp("run")
    load_or_train_tokenizer(TINY, Corpora(), folder / "tokenizer")
    return folder


def start(folder: Path, place: Path, recipe: NanoRecipe = TINY) -> NanoRun:
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "tokenizer").exists():
        (place / "tokenizer").symlink_to(folder / "tokenizer")
    run = start_run(recipe, None, place)
    run.log_every, run.save_seconds = 2, 1e9
    return run


def weights(run: NanoRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def test_ten_steps_lower_the_loss(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(TINY, warmup=(NanoPhase(12, 4, 96, (1, 1), 1),), other_lr=1e-2)
    run = start(folder, tmp_path / "a", recipe)
    loop.train(run, warmup_task(run), 12)
    log = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss_text"] < log[0]["loss_text"] - 0.2
    assert log[-1]["step"] == 12
    assert log[0]["stage"] == "warmup"


def test_resume_equals_uninterrupted(folder: Path, tmp_path: Path) -> None:
    whole, first = start(folder, tmp_path / "whole"), start(folder, tmp_path / "parts")
    loop.train(whole, warmup_task(whole), 8)
    loop.train(first, warmup_task(first), 5)
    second = start(folder, tmp_path / "parts")
    task = warmup_task(second)
    loop.resume(second, task)
    assert second.step == 5
    loop.train(second, task, 8)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


@pytest.fixture
def _unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random tiny weights proves nothing; `prove` has its own tests."""
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)


@pytest.mark.usefixtures("_unproven")
def test_continual_stage_follows_and_resumes(folder: Path, tmp_path: Path) -> None:
    run_stage(start(folder, tmp_path / "a"), "warmup", 3, False)
    before = checkpoint.load(tmp_path / "a" / "warmup").weights
    whole = start(folder, tmp_path / "a")
    run_stage(whole, "continual", 6, False)
    part = start(folder, tmp_path / "a")
    assert checkpoint.load(tmp_path / "a" / "continual").progress["step"] == 6
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, whole.model.state_dict()[name])]
    assert len(changed) > len(before) // 2
    run_stage(part, "continual", 6, True)
    assert all(torch.equal(tensor, part.model.state_dict()[name]) for name, tensor in weights(whole).items())


@pytest.mark.usefixtures("_unproven")
def test_a_control_run_never_sees_a_passage(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage(start(folder, tmp_path / "a"), "warmup", 2, False)
    monkeypatch.setattr(continual, "read_memories", None)
    monkeypatch.setattr(continual, "context_batch", None)
    run = start(folder, tmp_path / "a")
    run_stage(run, "control", 4, False)
    assert run.step == 4
    assert checkpoint.load(tmp_path / "a" / "control").progress["stage"] == "control"


@pytest.mark.usefixtures("_unproven")
def test_running_text_is_trained_on_with_memories_of_what_stood_before_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["Ada", "Bob", "Cleo", "Dora", "Emil", "Fern", "Gus", "Hal"]
    paragraphs = [f"{name} went to the harbour with {other} to see the boats." for name in names for other in names]
    corpora = Corpora(paragraphs=paragraphs, heldout_paragraphs=paragraphs[:30])
    phase = NanoPhase(4, 3, 64, (2, 2), 1, books=1.0, slots=4)
    recipe = replace(TINY, warmup=(phase,), continual=(phase,), plain_every=0, whole_every=0, text_stride=1)
    recipe = replace(recipe, eval_every=2)
    row = book_example(Random(0), paragraphs, 2)
    assert all(text in paragraphs and text not in row.text for text in row.references)
    run = start(folder, tmp_path / "a", recipe)
    with pytest.raises(InputError, match="trained on books"):
        run_stage(run, "warmup", 2, False)
    run.corpora, run.log_every = corpora, 1
    run_stage(run, "warmup", 2, False)
    run.step = 0
    monkeypatch.setattr(continual, "ENDS_ROWS", 40)
    monkeypatch.setattr(warmup, "ENDS_ROWS", 40)
    run_stage(run, "continual", 2, False)
    log = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert all(record["loss_text"] > 1 > record["loss_answer"] == 0 for record in log if "loss_text" in record)
    assert {"loss_text_none", "loss_text_memory"} <= log[-2].keys()
    assert [record["step"] for record in log if "loss_text_memory" in record] == [0, 2]
    ends = [record for record in log if "loss_text_none_40" in record]
    assert [record["step"] for record in ends] == [0, 2]
    assert ends[-1]["loss_text_memory_40"] > 1
    batch = continual.memory_batch(run, phase, "x")
    assert [len(row) for row in batch.references] == [2, 2, 2]
    assert batch.kind_BT.eq(TEXT).sum() > 60


@pytest.mark.usefixtures("_unproven")
def test_evaluation_tells_memory_from_none(folder: Path, tmp_path: Path) -> None:
    run = start(folder, tmp_path / "a")
    found = continual.evaluate_memory(run, continual.reading_model(run), None, rows=2)
    assert {"loss_memoryall", "loss_memory8", "loss_none", "memory8_exact", "heldout5_exact"} <= found.keys()
    assert len({found["loss_memoryall"], found["loss_memory8"], found["loss_none"]}) == 3


@pytest.mark.usefixtures("_unproven")
def test_gradients_reach_the_writing(folder: Path, tmp_path: Path) -> None:
    run = start(folder, tmp_path / "a")
    lm = continual.reading_model(run)
    batch = continual.memory_batch(run, TINY.continual[1], "x")
    words = [torch.tensor(ids) for row in batch.references for ids in row]
    continual.memory_losses(run, lm, continual.paper_config(lm, 4), batch).total.backward()
    gradient = run.model.model.embed_tokens.weight.grad
    assert gradient is not None
    key = run.model.model.layers[0].self_attn.k_proj.weight.grad
    assert key is not None
    assert float(key.abs().sum()) > 0
    assert len(words) == 6


@pytest.mark.usefixtures("_unproven")
def test_export_is_a_folder_that_loads(folder: Path, tmp_path: Path) -> None:
    run_stage(start(folder, tmp_path / "a"), "warmup", 2, False)
    run_stage(start(folder, tmp_path / "a"), "continual", 2, False)
    run = start(folder, tmp_path / "a")
    export_nano(run, HeadRecipe(layers=(0, 1), dim=8, groups=10, heldout_groups=4, steps=5, batch=8))
    lm = load(tmp_path / "a" / "export")
    assert lm.embedder is not None
    assert lm.embedder.embed(["one", "two"]).shape == (2, 8)
    assert lm.stop == ("\n",)
    rendered = lm.render([{"role": "user", "content": "Who?"}])
    assert lm.tokenizer.decode(rendered) == "<s> Question: Who?\nAnswer:"
    for text in ("Mara plays\n the cello, 24,571 times — ünïcode 测试.", "", " x", "12345"):
        assert lm.decode(lm.encode(text)).removeprefix(" ") == text.removeprefix(" ")
    assert lm.encode("Mara plays") == lm.encode(" Mara plays")


def test_a_crash_while_saving_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = checkpoint.Checkpoint({"w": torch.ones(2)}, {"o": torch.zeros(1)}, {"step": 1})
    checkpoint.save(tmp_path / "c", one)

    def full(file: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device -> free some disk space"):
        checkpoint.save(tmp_path / "c", replace(one, progress={"step": 2}))
    assert checkpoint.load(tmp_path / "c").progress == {"step": 1}
    (tmp_path / "c").rename(tmp_path / "c.before")
    assert checkpoint.load(tmp_path / "c").progress == {"step": 1}


def test_damaged_and_missing_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoint.load(tmp_path / "c")
    checkpoint.save(tmp_path / "c", checkpoint.Checkpoint({"w": torch.ones(2)}, {}, {}))
    (file,) = (tmp_path / "c").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(tmp_path / "c")
    checkpoint.save(tmp_path / "d", checkpoint.Checkpoint({"w": torch.ones(2)}, {}, {"step": 1}))
    checkpoint.save(tmp_path / "d", checkpoint.Checkpoint({"w": torch.ones(2)}, {}, {"step": 2}))
    (file,) = (tmp_path / "d").glob("*.safetensors")
    file.write_bytes(b"xx")
    with pytest.warns(UserWarning, match="the checkpoint before it is used"):
        assert checkpoint.load(tmp_path / "d").progress == {"step": 1}
    assert not checkpoint.exists(tmp_path / "e")
    (tmp_path / "d").rename(tmp_path / "e.before")
    assert checkpoint.exists(tmp_path / "e"), "a crash between two renames leaves it so"


def test_losses_and_exact_answers_by_hand() -> None:
    ids_BT = torch.tensor([[3, 4, 5, 6, 7, 8, 9]])
    kind_BT = torch.tensor([[0, TEXT, TEXT, ANSWER, ANSWER, TEXT, ANSWER]], dtype=torch.int8)
    index_N = targets(kind_BT, 10**6, shift=1)
    assert index_N.tolist() == [2, 3, 5]
    logits_NV = torch.zeros(3, 10)
    logits_NV[0, 6] = logits_NV[1, 7] = 9.0
    token, whole = exact_answers(logits_NV, index_N, ids_BT, kind_BT)
    assert (round(token, 3), whole) == (0.667, 0.5)
    found = answer_losses(logits_NV, index_N, ids_BT, kind_BT, 0.1)
    assert float(found.answer) == pytest.approx(torch.tensor(10.0).log().item() / 3, abs=1e-2)
    assert float(found.text) == 0.0


@pytest.mark.usefixtures("_unproven")
def test_a_run_can_start_with_the_weights_of_a_folder(folder: Path, tmp_path: Path) -> None:
    run_stage(start(folder, tmp_path / "a"), "warmup", 2, False)
    first = start(folder, tmp_path / "a")
    loop.load_weights(first, "warmup")
    export(tmp_path / "model", TINY.shape, first.optimizer.masters, first.encoder.tokenizer, None)
    second = start_run(TINY, None, tmp_path / "b", tmp_path / "model")
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    run_stage(second, "continual", 1, False)
    with pytest.raises(InputError, match="cannot start with the weights"):
        start_run(replace(TINY, shape=replace(SHAPE, width=16)), None, tmp_path / "c", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    missing = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    save_file(missing, tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.norm\.weight is not in both"):
        start_run(TINY, None, tmp_path / "e", tmp_path / "model")
    save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match="it has no Llama layers"):
        start_run(TINY, None, tmp_path / "d", tmp_path / "model")


CHILD = """
import sys
from pathlib import Path
from remanence.train.core import loop
from remanence.train.recipes.nano import nano
from tests.train.tiny_runs import SHAPE, begin, losses, smaller
run, task = begin(Path(sys.argv[1]), smaller(nano()), "warmup")
run.save_seconds = 0.0
loop.train(run, task, 10**6)
"""


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Killed while it trains and saves; then it goes on to the weights of a run that nobody killed."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "killed")], cwd=Path(__file__).parents[2])
    progress = tmp_path / "killed" / "warmup" / "progress.json"
    while child.poll() is None and _steps(progress) < 7:
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    killed, task = begin(tmp_path / "killed", smaller(nano()), "warmup")
    loop.resume(killed, task)
    assert killed.step >= 6
    end = killed.step + 5
    loop.train(killed, task, end)
    whole, task = begin(tmp_path / "whole", smaller(nano()), "warmup")
    loop.train(whole, task, end)
    for name, master in whole.optimizer.masters.items():
        assert torch.equal(master, killed.optimizer.masters[name]), name


def _steps(progress: Path) -> int:
    try:
        return int(json.loads(progress.read_text())["step"])
    except (OSError, ValueError):
        return 0


def test_a_checkpoint_of_another_recipe_is_refused_and_a_change_on_the_way_is_written_down(tmp_path: Path) -> None:
    recipe = smaller(nano())
    run, task = begin(tmp_path, recipe, "warmup")
    loop.train(run, task, 1)
    with pytest.raises(InputError, match="word vectors of width 32, the recipe's width is 64 -> use another --out"):
        begin(tmp_path, replace(recipe, shape=replace(recipe.shape, width=64)), "warmup")
    deeper, task = begin(tmp_path, replace(recipe, shape=replace(recipe.shape, num_layers=3)), "warmup")
    before = weights(deeper)
    with pytest.raises(InputError, match=r"shape\.num_layers is 2 there and 3 here -> use --set shape\.num_layers=2"):
        loop.resume(deeper, task)
    assert all(torch.equal(tensor, deeper.model.state_dict()[name]) for name, tensor in before.items())
    gentler, task = begin(tmp_path, replace(recipe, matrix_lr=1e-5), "warmup")
    loop.resume(gentler, task)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["changed"] == {"matrix_lr": [2e-4, 1e-5]}


@pytest.mark.usefixtures("_unproven")
@pytest.mark.parametrize("stage", ["warmup", "continual"])
def test_layers_that_are_computed_again_give_the_same_losses(tmp_path: Path, stage: str) -> None:
    plainly, again = (
        losses(*begin(tmp_path / name, replace(smaller(nano()), checkpointing=name == "again"), "warmup"), 3)
        if stage == "warmup"
        else continued(tmp_path / name, name == "again")
        for name in ("plainly", "again")
    )
    assert again == pytest.approx(plainly, abs=1e-5)
    assert len(set(plainly)) == 3


def continued(folder: Path, checkpointing: bool) -> list[float]:
    recipe = replace(smaller(nano()), checkpointing=checkpointing)
    loop.train(*begin(folder, recipe, "warmup"), 1)
    return losses(*begin(folder, recipe, "continual"), 3)


def test_the_z_loss_is_the_square_of_the_log_of_the_sum() -> None:
    ids_BT, index_N = torch.tensor([[3, 4, 5]]), torch.tensor([0, 1])
    kind_BT = torch.tensor([[0, ANSWER, ANSWER]], dtype=torch.int8)
    logits_NV = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    without = answer_losses(logits_NV, index_N, ids_BT, kind_BT, 0.1)
    found = answer_losses(logits_NV, index_N, ids_BT, kind_BT, 0.1, 0.5)
    expected = 0.5 * (logits_NV.exp().sum(-1).log() ** 2).mean()
    assert float(found.total - without.total) == pytest.approx(float(expected), abs=1e-5)
    assert float(found.answer) == float(without.answer)
