"""Exams hold what was asked for, are the same for the same seed, and bad files are refused by name and line."""

from __future__ import annotations

import dataclasses
import gzip
import json

import pytest

from remanence.errors import InputError
from remanence.eval import tasks
from remanence.eval.tasks.facts import Facts
from remanence.eval.tasks.squad import Squad

FACT = {"passage": "Ada's locker code is 4417.", "question": "What is Ada's code?", "answer": "4417"}


def lines(path, *records):
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return path


def test_the_folder_is_the_registry():
    assert tasks.known()["facts"] is Facts
    assert tasks.known()["squad"] is Squad


def test_every_setting_has_a_line_of_help():
    for task in tasks.known().values():
        assert all(field.metadata["help"].endswith(".") for field in dataclasses.fields(task))


def test_generated_facts_stand_in_their_passages_among_distractors():
    eval_set = Facts(bank_size=30).eval_set(12, seed=3)
    assert (len(eval_set.examples), len(eval_set.passages)) == (12, 30)
    assert len(set(eval_set.passages)) == 30
    assert all(item.answers[0] in eval_set.passages[item.passage] for item in eval_set.examples)
    assert eval_set == Facts(bank_size=30).eval_set(12, seed=3)
    assert eval_set != Facts(bank_size=30).eval_set(12, seed=4)
    places = [item.passage for item in eval_set.examples]
    assert places != sorted(places)


def test_facts_and_distractors_of_ones_own(tmp_path):
    other = {"passage": FACT["passage"], "question": "Whose code is 4417?", "answer": "Ada's"}
    facts = lines(tmp_path / "facts.jsonl", FACT, "", other)
    (tmp_path / "others.txt").write_text("One\nblock.\n\n\nAnother block.\n\nOne block.\n\nA third.")
    eval_set = Facts(facts, tmp_path / "others.txt", bank_size=3).eval_set(500, seed=0)
    assert sorted(eval_set.passages) == [FACT["passage"], "Another block.", "One block."]
    assert [item.answers for item in eval_set.examples] == [("4417",), ("Ada's",)]
    assert {eval_set.passages[item.passage] for item in eval_set.examples} == {FACT["passage"]}
    assert eval_set.notes == {"passages": 3, "distractors": 2}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"passage": "x"}', "line 1"),
        (json.dumps(FACT) + "\nnot json", "line 2"),
        (json.dumps({**FACT, "answer": " "}), "empty 'answer'"),
        (json.dumps({**FACT, "answer": 3}), "line 1"),
        ("[1]", "line 1"),
        ("", "no facts"),
    ],
)
def test_a_bad_file_of_facts_is_refused(tmp_path, content, reason):
    path = tmp_path / "facts.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=reason):
        Facts(path).eval_set(5, seed=0)


def test_a_missing_and_a_binary_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        Facts(tmp_path / "nowhere.jsonl").eval_set(5, seed=0)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        Facts(distractors=tmp_path / "binary").eval_set(5, seed=0)


@pytest.fixture
def squad(tmp_path):
    """Four contexts of two answerable questions each, and one question that has no answer."""
    paragraphs = [
        {
            "context": f"Harbour {i} has {i + 3} cranes and opened in 19{i}0.",
            "qas": [
                {"question": f"How many cranes has harbour {i}?", "answers": [{"text": str(i + 3)}, {"text": "some"}]},
                {"question": f"When did harbour {i} open?", "answers": [{"text": f"19{i}0"}]},
            ],
        }
        for i in range(4)
    ]
    paragraphs[0]["qas"].append({"question": "Who?", "answers": [], "is_impossible": True})
    path = tmp_path / "squad.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"data": [{"title": "x", "paragraphs": paragraphs}]}).encode()))
    return path


def test_squad_questions_follow_their_contexts(squad):
    eval_set = Squad(squad).eval_set(100, seed=0)
    assert (len(eval_set.examples), len(eval_set.passages)) == (8, 4)
    assert eval_set.notes == {"passages": 4, "unanswerable_not_asked": 1}
    for item in eval_set.examples:
        harbour = item.question.rstrip("?").split("harbour ")[1].split()[0]
        assert eval_set.passages[item.passage].startswith(f"Harbour {harbour} ")
    assert ("4", "some") in {item.answers for item in eval_set.examples}


def test_squad_bank_size_keeps_the_questions_contexts(squad):
    eval_set = Squad(squad, bank_size=1).eval_set(2, seed=1)
    assert len(eval_set.passages) == len({item.passage for item in eval_set.examples})
    assert len(Squad(squad, bank_size=3).eval_set(1, seed=1).passages) == 3


def test_squad_without_answers_is_refused(tmp_path):
    path = lines(tmp_path / "empty.json", json.dumps({"data": []}))
    with pytest.raises(InputError, match="no question"):
        Squad(path).eval_set(5, seed=0)
