"""All systems answer the same questions on one bank with the same hits; figures are means over the questions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from remanence.errors import InputError
from remanence.eval.run import (
    EvalRun,
    Options,
    check_same_hits,
    evaluate,
    figures,
    ratios,
    result,
    score,
    write_details,
)
from remanence.eval.systems import OwnContext, OwnContextConfig
from remanence.eval.tasks.base import Example
from remanence.eval.tasks.facts import Facts
from remanence.eval.tasks.squad import Squad
from remanence.lm.load import load
from remanence.measurement import check_writable
from remanence.methods import known
from remanence.methods.base import Prompt
from remanence.types import Recall, Reply, Usage

SYSTEMS = ("plain", "memory3", "memory3:dense", "retrieved_text", "full_context")
OPTIONS = Options(SYSTEMS, n=4, batch_size=3, max_tokens=4)


@pytest.fixture(scope="module")
def lm():
    return load("tiny")


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """Four short facts, so that each question is one chunk of the byte tokenizer."""
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    names = ("Ada", "Bruno", "Clara", "Dmitri")
    path.write_text(
        "\n".join(
            json.dumps({"passage": f"{name}'s locker code is {i}417.", "question": f"{name}'s code?", "answer": f"{i}"})
            for i, name in enumerate(names)
        )
    )
    return Facts(path, bank_size=12)


@pytest.fixture(scope="module")
def run(lm, facts) -> EvalRun:
    return evaluate(lm, facts, OPTIONS)


def test_all_systems_answer_all_questions(run):
    made = figures(run)
    assert tuple(made) == SYSTEMS
    assert all(system["n"] == 4 and 0 <= system["f1"] <= 1 for system in made.values())
    assert "recall_at_5" not in made["plain"]
    assert made["memory3"]["recall_at_5"] == made["retrieved_text"]["recall_at_5"] == 1.0
    assert made["memory3"]["answer_in_recalled"] == 0.0  # "0" is no word of "0417"
    assert made["memory3"]["memory_tokens"] > 0
    assert made["retrieved_text"]["prompt_tokens"] > made["memory3"]["prompt_tokens"] == made["plain"]["prompt_tokens"]
    assert made["full_context"]["passage_in_context"] > 0
    assert made["full_context"]["recalled_chunks"] > 5


def test_replies_are_in_the_order_of_the_questions(lm, facts, run):
    alone = evaluate(lm, facts, replace(OPTIONS, systems=("memory3",), batch_size=1))
    assert [r.text for r in alone.replies["memory3"]] == [r.text for r in run.replies["memory3"]]
    for example, reply in zip(run.eval_set.examples, run.replies["memory3"], strict=True):
        assert str(example.passage) in {recall.source for recall in reply.recalled}


def test_the_same_query_recalls_the_same_for_every_system(lm, run):
    found = {name: [{r.id for r in reply.recalled} for reply in run.replies[name]] for name in SYSTEMS[1:4]}
    assert found["memory3"] == found["memory3:dense"] == found["retrieved_text"]
    spoiled = {**run.replies, "memory3": [replace(reply, recalled=[]) for reply in run.replies["memory3"]]}
    with pytest.raises(AssertionError, match="recalled differently"):
        check_same_hits(lm, run.systems, run.eval_set, spoiled, OPTIONS)


def test_the_result_is_one_json_object(lm, facts, run):
    report = json.loads(json.dumps(result(lm, facts, OPTIONS, run)))
    assert list(report) == "task n seed commit machine model conditions systems ratios".split()
    assert (report["task"], report["n"], report["seed"]) == ("facts", 4, 0)
    assert report["conditions"]["passages"] == 12


def test_details_are_one_line_per_question(run, tmp_path):
    write_details(run, tmp_path / "details.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "details.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == [example.question for example in run.eval_set.examples]
    assert rows[0]["systems"]["memory3"]["hit"]
    assert rows[0]["systems"]["plain"]["recalled"] == []
    with pytest.raises(InputError, match="cannot write"):
        check_writable(tmp_path / "no" / "folder.jsonl")


def test_squad_gives_full_context_the_questions_own_passage(lm, tmp_path):
    path = tmp_path / "squad.json"
    record = {"context": "The pier has 7 lamps.", "qas": [{"question": "How many lamps?", "answers": [{"text": "7"}]}]}
    path.write_text(json.dumps({"data": [{"paragraphs": [record]}]}))
    made = figures(evaluate(lm, Squad(path), replace(OPTIONS, systems=("plain", "full_context"))))
    added = len("Reference: The pier has 7 lamps.\n") + 1  # a token per byte, and <s>
    assert made["full_context"]["prompt_tokens"] == made["plain"]["prompt_tokens"] + added


def test_a_passage_that_is_too_long_loses_its_end_not_the_question(lm):
    method = OwnContext({"Q?": "x" * 5000}, OwnContextConfig(64))
    prompt = Prompt(tuple(lm.encode("Q?")), "Q?")
    (row,) = method.read(lm, None, [prompt]).prompts
    assert len(row) == lm.dims.max_positions - method.config.reserved_tokens
    assert row[-2:] == prompt.ids
    assert OwnContext not in known().values()


def reply(text: str, *recalled: Recall) -> Reply:
    return Reply(text, recalled, Usage(10, 2, 8), 0.1, 0.1, "stop")


def test_score_by_hand():
    example = Example("Which door?", ("blue door", "the left door"), passage=7)
    hit = Recall("id", "We painted the Blue Door.", "7", 1.0)
    made = score(example, reply("a red door", hit))
    assert made["exact_match"] == 0.0
    assert made["f1"] == pytest.approx(0.5)
    assert (made["passage_recalled"], made["answer_recalled"]) == (1.0, 1.0)
    assert score(example, reply("Left door."))["exact_match"] == 1.0
    assert score(example, reply("", replace(hit, source="8", text="nothing")))["answer_recalled"] == 0.0


def test_ratios_are_over_retrieved_text():
    by_system = {"plain": {"f1": 0.1}, "memory3": {"f1": 0.45}, "retrieved_text": {"f1": 0.5}}
    assert ratios(by_system, "f1") == {"f1_memory3_over_retrieved_text": pytest.approx(0.9)}
    assert ratios({"memory3": {"f1": 0.5}}, "f1") == {}
    assert ratios({**by_system, "retrieved_text": {"f1": 0.0}}, "f1") == {}


def test_options_and_systems_that_make_no_sense_are_refused(lm, facts):
    with pytest.raises(InputError, match="batch_size is 0"):
        Options(SYSTEMS, batch_size=0)
    for names in ((), ("plain", "plain"), ("nothing",)):
        with pytest.raises(InputError):
            evaluate(lm, facts, replace(OPTIONS, systems=names))
