from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace

import pytest

from remanence import answers
from remanence.answers import Answer, Recalled


def answer(number: int, *ids: str, namespace: str = "default") -> Answer:
    recalled = tuple(Recalled(id, 0.5, None) for id in ids)
    return Answer(number, namespace, "tiny", "memory3", 0, f"question {number}?", "é", {"max_tokens": 8}, recalled)


def test_the_newest_first(tmp_path):
    assert answers.last(tmp_path, "default") == []
    for number in range(3):
        answers.note(tmp_path, answer(number, "a"))
    assert answers.last(tmp_path, "default", 2) == [answer(2, "a"), answer(1, "a")]


def test_each_namespace_keeps_its_own_and_no_more_than_so_many(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "KEEP", 3)
    answers.note(tmp_path, answer(100, namespace="ada"))
    for number in range(5):
        answers.note(tmp_path, answer(number))
    assert [each.time for each in answers.last(tmp_path, "default", 9)] == [4, 3, 2]
    assert [each.time for each in answers.last(tmp_path, "ada", 9)] == [100]


def test_scrub_removes_every_answer_from_a_memory(tmp_path):
    for number, ids in enumerate([("a",), ("a", "b"), ("c",), ()]):
        answers.note(tmp_path, answer(number, *ids))
    assert answers.scrub(tmp_path, {"a", "b"}) == 2
    assert [each.time for each in answers.last(tmp_path, "default", 9)] == [3, 2]
    assert answers.scrub(tmp_path, {"a"}) == 0


def test_a_damaged_line_loses_only_itself(tmp_path):
    answers.note(tmp_path, answer(1))
    with (tmp_path / answers.FILE).open("a") as file:
        file.write('{"half": \n[]\n')
    answers.note(tmp_path, answer(2))
    assert [each.time for each in answers.last(tmp_path, "default", 9)] == [2, 1]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    answers.note(tmp_path, answer(1))
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        answers.note(tmp_path, answer(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [answers.FILE, answers.LOCK]
    assert answers.last(tmp_path, "default") == [answer(1)]


def test_whoever_notes_does_not_put_back_what_another_scrubs(tmp_path, monkeypatch):
    answers.note(tmp_path, answer(1, "a"))
    read, scrubbers = answers._read, []

    def read_slowly(bank):
        found = read(bank)
        if not scrubbers:  # the note has read: what forgets comes in between, as far as it can
            scrubbers.append(threading.Thread(target=answers.scrub, args=(tmp_path, {"a"})))
            scrubbers[0].start()
            scrubbers[0].join(0.2)
        return found

    monkeypatch.setattr(answers, "_read", read_slowly)
    answers.note(tmp_path, answer(2))
    scrubbers[0].join()
    assert [each.time for each in answers.last(tmp_path, "default", 9)] == [2]


def test_what_a_kill_left_goes_with_the_next_change(tmp_path):
    answers.note(tmp_path, answer(1))
    left = tmp_path / f".{answers.FILE}.0123.tmp"
    left.write_text("the code is 4417")
    answers.scrub(tmp_path, {"a"})
    assert not left.exists()


def test_a_bank_without_answers_gets_no_lock(tmp_path):
    assert answers.scrub(tmp_path, {"a"}) == 0
    assert not list(tmp_path.iterdir())


def test_an_answer_goes_with_what_an_earlier_turn_recalled(tmp_path):
    answers.note(tmp_path, replace(answer(1, "b"), earlier=("a",)))
    assert answers.last(tmp_path, "default")[0].earlier == ("a",)
    answers.prune(tmp_path, "default", lambda id: id != "a")
    assert answers.last(tmp_path, "default") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ["nano"]},
        {"seed": "0"},
        {"options": {"without": ["a"]}},
        {"options": {"max_tokens": "many"}},
        {"options": {"max_tokens": True}},
        {"recalled": [{"id": 1, "score": 0.5, "share": None}]},
        {"earlier": [["a"]]},
    ],
)
def test_a_field_of_a_wrong_type_and_an_unknown_option_are_not_taken(tmp_path, wrong):
    (tmp_path / answers.FILE).write_text(json.dumps(asdict(answer(1, "a")) | wrong) + "\n")
    assert answers.last(tmp_path, "default") == []
