from __future__ import annotations

import json
from importlib.resources import files

import pytest

from remanence.cli import demo
from remanence.text.documents import read_documents
from remanence.types import Recall, Reply, Usage

FOLDER = files("remanence") / "assets" / "demo"


def questions() -> list[demo.Question]:
    return [demo.Question(**fields) for fields in json.loads((FOLDER / "questions.json").read_text())]


def test_json_has_the_documented_shape(call):
    result = call("demo", "--json", model=True).json
    assert {"accuracy", "accuracy_plain", "seconds", "questions"} <= result.keys()
    assert len(result["questions"]) == len(questions())
    for row in result["questions"]:
        assert {"question", "expected", "answer", "correct", "recalled", "answer_without_memory"} <= row.keys()
        texts = [recall["text"] for recall in row["recalled"]]
        assert any(row["expected"] in text for text in texts), "every question of the demo finds its answer"


def test_a_table_and_what_to_type_next(call, tmp_path):
    outcome = call("demo", model=True)
    assert outcome.code == 0
    assert "without memory" in outcome.out
    assert "remanence write PATH" in outcome.out
    assert list(tmp_path.iterdir()) == [], "the bank was temporary"


def test_a_bank_that_is_kept(call):
    call("demo", "--bank", "kept", model=True)
    assert call("bank", "list", "--bank", "kept", "--json").json["total"] > 5


def test_every_expected_answer_stands_in_the_documents():
    texts = " ".join(document.text for document in read_documents([str(FOLDER)]))
    for question in questions():
        assert question.expected in texts


@pytest.mark.parametrize(
    ("answer", "right"), [("94", True), ("The 94.", True), ("94 steps", True), ("194", False), ("", False)]
)
def test_an_answer_is_right_if_it_is_the_expected_one(answer, right):
    assert demo.Question("How many?", "94", ("94 steps",)).is_answered_by(answer) is right


class Forgetful:
    """A session that knows one thing until it forgets it."""

    def __init__(self):
        self.known = [Recall("a" * 16, "It has 94 steps.", "notes.txt", 1.0)]

    def forget(self, *ids):
        self.known = [recall for recall in self.known if recall.id not in ids]
        return type("Receipt", (), {"exact": True})

    def generate(self, question, **options):
        return Reply("94" if self.known else "a dog", self.known, Usage(1, 1, 0), 0.0, 0.0, "stop")


def test_the_demo_forgets_what_it_knew(capsys):
    session, question = Forgetful(), demo.Question("How many steps?", "94")
    row = demo._row(question, session.generate(""), session.generate(""))
    forgotten = demo.forget_one(session, [row])
    assert (forgotten["answer_before"], forgotten["answer"], forgotten["recalled"]) == ("94", "a dog", [])
    demo._show_forgotten(forgotten)
    assert "94 became a dog (nothing recalled)" in capsys.readouterr().out
    assert demo.forget_one(session, [row | {"correct": False}]) is None
