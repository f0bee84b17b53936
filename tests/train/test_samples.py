"""Sample answers are those of greedy decoding, and looking at a run changes nothing of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

import remanence.lm.lm as lm_module
from remanence.errors import InputError
from remanence.lm.decode import decode
from remanence.methods.memory3.method import Group, Memory3
from remanence.train.core import loop
from remanence.train.core.loop import Run, Task
from remanence.train.examples.mixture import facts_example
from remanence.train.memory3 import samples
from remanence.train.memory3.continual import paper_config, reading_model
from remanence.train.recipes.nano import nano
from remanence.train.recipes.nano_mplus import nano_mplus
from tests.train.tiny_runs import begin, begin_latent, losses, smaller, smaller_latent


@pytest.fixture(autouse=True)
def _unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)  # random tiny weights prove nothing


def test_answers_are_those_of_greedy_decoding_with_the_same_memories(tmp_path: Path) -> None:
    run: Any = begin(tmp_path, smaller(nano()), "warmup")[0]
    lm = reading_model(run)
    found = samples.sample_with_memories(lm, run.encoder, run.recipe, 4)["samples"]
    assert len(found) == samples.QUESTIONS
    rng, method = Random(f"{run.recipe.seed} samples"), Memory3(paper_config(lm, 4))
    for sample in found:
        row = facts_example(rng, samples.PASSAGES, "heldout")
        assert (sample["question"], sample["gold"]) == row.pairs[0]
        ids = [run.encoder.bos, *run.encoder(f"Question: {sample['question']}\nAnswer:")[0]]
        with torch.no_grad():
            memories = tuple(method.write(lm, [ids[:128] for ids in run.encoder(*row.references)]))
            prefix = method.prefix(lm, [[Group(0, memories)]], [len(ids)])
        (answer,) = list(decode(lm, [ids], prefix, max_tokens=samples.MOST_TOKENS, stop=["\n"]))[-1]
        assert sample["answer"] == answer.text.strip()


def warmup(folder: Path, **fields: Any) -> tuple[Run, Task]:
    return begin(folder, replace(smaller(nano()), **fields), "warmup")


def continual(folder: Path, **fields: Any) -> tuple[Run, Task]:
    loop.train(*begin(folder, smaller(nano()), "warmup"), 1)
    return begin(folder, replace(smaller(nano()), **fields), "continual")


def mplus(folder: Path, **fields: Any) -> tuple[Run, Task]:
    torch.manual_seed(0)  # adapters are drawn before a run seeds the generator
    return begin_latent(folder, replace(smaller_latent(nano_mplus()), **fields))


@pytest.mark.parametrize("make", [warmup, continual, mplus], ids=["warmup", "continual", "latent"])
def test_a_run_that_is_looked_at_is_the_run_that_is_not(tmp_path: Path, make: Callable[..., tuple[Run, Task]]) -> None:
    alone = losses(*make(tmp_path / "alone"), 3)
    run, task = make(tmp_path / "seen", eval_every=1, sample_every=1)
    assert losses(run, task, 3) == alone
    log = [json.loads(line) for line in (tmp_path / "seen" / "log.jsonl").read_text().splitlines()]
    told = [record for record in log if "samples" in record and record["stage"] == task.stage]
    assert [record["step"] for record in told] == [1, 2, 3]
    assert all(sample.keys() == {"question", "gold", "answer"} for record in told for sample in record["samples"])


def test_how_often_is_checked(tmp_path: Path) -> None:
    assert warmup(tmp_path)[1].sample_every == 1000, "with every evaluation"
    assert warmup(tmp_path, sample_every=0)[1].sample_every == 0
    with pytest.raises(InputError, match="sample_every is -1"):
        replace(nano(), sample_every=-1)
