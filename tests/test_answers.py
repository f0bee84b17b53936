from __future__ import annotations

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
    assert [path.name for path in tmp_path.iterdir()] == [answers.FILE]
    assert answers.last(tmp_path, "default") == [answer(1)]
