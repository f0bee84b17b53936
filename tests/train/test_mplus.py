"""Training M+ on TinyLM: every task runs, what must learn learns, and a run that is cut goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

import remanence as rm
from remanence.lm.lora import LoraConfig, adapter
from remanence.methods.mplus.method import MPlus, MPlusConfig
from remanence.train.core.loop import resume, train
from remanence.train.core.schedule import phase_at
from remanence.train.examples.documents import draw_document, question_sentences
from remanence.train.examples.mixture import Example
from remanence.train.mplus.projector_init import WordPairs, word_maps
from remanence.train.mplus.retriever import train_retriever
from remanence.train.mplus.run import state
from remanence.train.mplus.stages import evaluate, export_mplus, mplus_task, start_mplus_run
from remanence.train.mplus.steps import step_loss, valid_rows, write_documents
from remanence.train.recipes.nano_mplus import MPlusPhase, MPlusRecipe

METHOD = {
    "chunk_tokens": 24,
    "min_chunk_tokens": 4,
    "write_rows": 8,
    "pool_blocks": 4,
    "long_blocks": 2,
    "key_width": 8,
    "ranked": "writes",
    "short": "own",
}
PHASE = MPlusPhase(2, documents=3, chunks=(1, 2), full=0.0, repeat=0.2)
RECIPE = MPlusRecipe(
    lora=LoraConfig(rank=4, alpha=8, dropout=0.0),
    method=METHOD,
    stages=(PHASE,),
    read_long_rows=(12,),
    past_writes=4,
    kept_rows=200,
    max_questions=4,
    reading={},
    projector_documents=8,
)
WHERE = {"alone": {"whole_pool": 0.0}, "pool": {"whole_pool": 1.0}, "long": {"whole_pool": 1.0, "long": 1.0}}


@pytest.fixture
def run(tmp_path: Path):
    return start_mplus_run(RECIPE, "tiny", None, tmp_path / "run")


@pytest.mark.parametrize("where", WHERE)
def test_each_task_teaches_the_writer_the_reader_and_the_retriever(run, where):
    phase = replace(PHASE, repeat=0.0, **WHERE[where])
    step_loss(run, phase, Random("a 0"))[0].backward()
    run.optimizer.step(1.0)  # B of every adapter is zero at first: the gradient of A needs one step
    step_loss(run, phase, Random("a 1"))[0].backward()
    for role in ("write", "read"):
        assert any(p.grad is not None and p.grad.any() for p in adapter(run.lm.model, role).values())
    modules = run.method.modules(run.lm)
    assert all(query[2].weight.grad.any() for query in modules.query)
    assert modules.mark_C.grad.any()
    assert modules.bos_LC.grad.any()
    assert all(p.grad is None for name, p in run.lm.model.named_parameters() if ".base." in name)


def test_what_was_written_is_in_the_pool_and_can_be_asked_for_again(run):
    clock = run.pool.clock
    step_loss(run, PHASE, Random("b"))
    assert run.pool.clock > clock
    assert not run.pool.row_LNC.requires_grad
    for step in range(8):
        step_loss(run, PHASE, Random(f"c {step}"))
    assert run.pool.long.blocks.num_rows
    step_loss(run, replace(PHASE, revisit=1.0), Random("d"))[0].backward()
    assert run.sums["#revisit_answer"] == 1


def test_running_text_is_to_be_read_as_the_base_reads_it(run):
    for step in range(3):
        step_loss(run, PHASE, Random(f"e {step}"))
    losses = []
    for step in range(12):
        run.optimizer.drop_gradients()
        loss, _ = step_loss(run, replace(PHASE, full=1.0), Random(f"f {step % 2}"))
        loss.backward()
        run.optimizer.step(1.0)
        losses.append(float(loss.detach()))
    assert sum(losses[-2:]) < sum(losses[:2])


def test_a_cut_run_is_the_run_that_was_never_cut(run, tmp_path: Path):
    """Bit for bit: weights, pool, long-term memory, and what later steps ask for."""
    recipe = replace(RECIPE, stages=(replace(PHASE, num_steps=9, full=0.2, revisit=0.3, long=0.5),))
    runs = [start_mplus_run(recipe, "tiny", None, tmp_path / name) for name in ("whole", "parts", "parts")]
    whole, parts, again = runs
    train(whole, mplus_task(whole, 9), 9)
    train(parts, mplus_task(parts, 9), 5)
    task = mplus_task(again, 9)
    resume(again, task)
    assert again.step == 5
    train(again, task, 9)
    for name, master in whole.optimizer.masters.items():
        assert torch.equal(master, again.optimizer.masters[name]), name
    assert json.loads(json.dumps(state(whole)[1])) == json.loads(json.dumps(state(again)[1]))
    tensors, others = state(whole)[0], state(again)[0]
    assert any(name.startswith("past/") for name in tensors)
    assert whole.pool.long.blocks.num_rows > 0
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


def test_rows_that_are_no_numbers_send_the_run_back_and_stay_out_of_the_pool(run):
    """One step with a rate that no weights survive: the run leaves its batches out and comes through."""
    task = mplus_task(run, 8)

    def rate(step: int) -> float:
        return 1e30 if step == 3 and not run.rewinds else task.rate(step)

    train(run, replace(task, rate=rate), 8)
    assert run.step == 8
    assert run.rewinds == 1
    assert run.pool.row_LNC.isfinite().all()
    assert all(row_LGKC.isfinite().all() for row_LGKC, _ in run.past)


def test_what_is_exported_loads_and_reads_as_it_did(run, tmp_path: Path):
    train(run, mplus_task(run, 2), 2)
    assert export_mplus(run, tmp_path / "adapter", "tiny") < 10**6
    lm = rm.load(tmp_path / "adapter")
    method = MPlus(MPlusConfig(**lm.settings["mplus"]))
    assert torch.equal(method.fresh(lm).row_LNC, run.pool.row_LNC.bfloat16().float())
    pool = method.add(lm, method.fresh(lm), list(range(5, 17)))
    with torch.no_grad():
        assert lm.forward(torch.tensor([[5, 6]]), method.prefix(lm, [pool]), role="read").isfinite().all()
    assert torch.equal(lm.forward(torch.tensor([[5, 6]])), rm.load("tiny").forward(torch.tensor([[5, 6]])))


def test_evaluation_counts_whole_answers(run):
    found = evaluate(run, 2)
    assert {"fresh_exact", "later_exact"} <= set(found)


def test_rows_know_whether_they_are_of_their_text(run):
    document = draw_document(Random(0), replace(PHASE, repeat=0.0), RECIPE, run.corpora, run.encoder, 2)
    document = replace(document, chunks=[[5] * 3, [6] * 20])
    assert valid_rows([document], 8).tolist() == [[False] * 5 + [True] * 11]


def test_an_answer_is_asked_for_without_bos_and_only_its_own_tokens_are_targets(run):
    (sentence,) = question_sentences(Example(["Ada owns a cat."], [("Who owns a cat?", "Ada")], [0]), run.encoder)
    assert run.lm.decode(sentence.ids) == "Question: Who owns a cat?\nAnswer: Ada\n"
    assert run.lm.decode(sentence.ids[sentence.num_asked :]) == " Ada\n"


def test_stages_follow_each_other_and_the_last_goes_on():
    stages = (replace(PHASE, num_steps=2), replace(PHASE, num_steps=3, long=1.0))
    assert [phase_at(stages, step)[0] for step in (0, 1, 2, 4, 5, 99)] == [0, 0, 1, 1, 1, 1]


def test_the_same_word_matches_from_the_start_and_others_do_not():
    generator = torch.Generator().manual_seed(0)
    word_VC, turn_CC = torch.randn(2000, 24, generator=generator), torch.randn(24, 24, generator=generator)
    common_C = 3 * torch.ones(24)
    words = [torch.randint(2000, (9,), generator=generator) for _ in range(1000)]
    pairs = WordPairs(
        [word_VC[told[:3]] + common_C for told in words],
        [word_VC[told] @ turn_CC - common_C for told in words],
        [(told[:3, None] == told).float() * 2 for told in words],
    )
    query_EC, key_EC = word_maps(pairs, 16)
    product_VV = (word_VC + common_C) @ query_EC.T @ ((word_VC @ turn_CC - common_C) @ key_EC.T).T
    same = torch.eye(2000, dtype=torch.bool)
    assert float(product_VV[same].median()) > 1.5
    assert float(product_VV[~same].quantile(0.95)) < -1.5


def test_no_score_is_saturated_at_the_start(run):
    documents = [
        draw_document(Random(n), replace(PHASE, repeat=0.0), RECIPE, run.corpora, run.encoder, 1) for n in range(4)
    ]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        row_DLRC = write_documents(run, documents)
        score_BLN = run.method.writer_scores(run.lm, row_DLRC)
    mean_L = score_BLN.mean((0, 2))
    assert 0.01 < float(mean_L.min()) < float(mean_L.max()) < 0.8


@pytest.mark.parametrize("loss", ["start", "balanced", "contrastive"])
def test_other_retrievers_are_written_for_a_trained_model(run, tmp_path: Path, loss):
    train(run, mplus_task(run, 2), 2)
    export_mplus(run, tmp_path / "adapter", "tiny")
    lm = rm.load(tmp_path / "adapter")
    train_retriever(run, loss, 3, tmp_path / "adapter" / f"retriever-{loss}.safetensors")
    modules = MPlus(MPlusConfig(**lm.settings["mplus"])).modules(lm)
    before = modules.key[0][0].weight.clone()
    modules.load_retriever(tmp_path / "adapter" / f"retriever-{loss}.safetensors")
    assert not torch.equal(before, modules.key[0][0].weight)
    with pytest.raises(rm.InputError, match="no retriever can be read"):
        modules.load_retriever(tmp_path / "none.safetensors")
