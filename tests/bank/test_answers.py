"""Answers kept for `why`: the newest of each namespace, never one whose memory is gone, never a damaged line."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from remanence.bank import Bank, answers
from remanence.bank.answers import Answer, Answers, Recalled

from .helpers import add_one


def answer(number: int, *ids: str, namespace: str = "default") -> Answer:
    recalled = tuple(Recalled(id, 0.5, None) for id in ids)
    return Answer(number, namespace, "tiny", "memory3", 0, f"question {number}?", "é", {"max_tokens": 8}, recalled)


def note(folder: Path, each: Answer) -> bool:
    """As if all that it recalled were live."""
    return Answers(folder).add(each, lambda ids: ids)


def times(folder: Path, namespace: str = "default") -> list[float]:
    return [each.time for each in Answers(folder).last(namespace, 99)]


def forget(folder: Path, *ids: str) -> int:
    return Answers(folder).remove(lambda each: not each.sources.isdisjoint(ids))


def test_the_newest_first(tmp_path):
    assert Answers(tmp_path).last("default", 1) == []
    for number in range(3):
        note(tmp_path, answer(number, "a"))
    assert Answers(tmp_path).last("default", 2) == [answer(2, "a"), answer(1, "a")]


def test_each_namespace_keeps_its_own_and_no_more_than_so_many(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "KEEP", 3)
    note(tmp_path, answer(100, namespace="ada"))
    for number in range(5):
        note(tmp_path, answer(number))
    assert times(tmp_path) == [4, 3, 2]
    assert times(tmp_path, "ada") == [100]


def test_removing_takes_every_answer_from_a_memory(tmp_path):
    for number, ids in enumerate([("a",), ("a", "b"), ("c",), ()]):
        note(tmp_path, answer(number, *ids))
    assert forget(tmp_path, "a", "b") == 2
    assert times(tmp_path) == [3, 2]
    assert forget(tmp_path, "a") == 0


def test_a_damaged_line_loses_only_itself_and_goes_with_the_next_removal(tmp_path):
    note(tmp_path, answer(1))
    with (tmp_path / answers.FILE).open("ab") as file:
        file.write(b'{"half": "the code is 4417"\n[]\n\xff\xfe 4417\n')
    assert times(tmp_path) == [1]
    assert forget(tmp_path, "a") == 3
    assert b"4417" not in (tmp_path / answers.FILE).read_bytes()
    note(tmp_path, answer(2))
    assert times(tmp_path) == [2, 1]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    note(tmp_path, answer(1))
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        note(tmp_path, answer(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [answers.FILE, answers.LOCK]
    assert times(tmp_path) == [1]


def test_what_is_forgotten_while_an_answer_is_noted_is_not_put_back(tmp_path):
    """Between its look at the memories and its write, whoever forgets has to wait."""
    with Bank.open(tmp_path / "bank") as bank, Bank.open(tmp_path / "bank") as other:
        secret, rest = add_one(bank, "the code is 4417"), add_one(bank, "the sea is wide")
        forgetting: list[threading.Thread] = []

        def find_live_slowly(ids):
            live = bank.texts(list(ids)).keys()
            forgetting.append(threading.Thread(target=other.forget, args=([secret],)))
            forgetting[0].start()
            forgetting[0].join(0.3)
            return live

        assert Answers(bank.path).add(answer(1, secret), find_live_slowly)
        forgetting[0].join()
        assert bank.note_answer(answer(2, rest))
        assert not bank.note_answer(answer(3, secret))
        assert times(bank.path) == [2]


def test_what_a_kill_left_goes_with_the_next_removal_even_of_the_first_answer(tmp_path):
    left = tmp_path / f".{answers.FILE}.0123.tmp"
    left.write_text("the code is 4417")
    forget(tmp_path, "a")
    assert not left.exists()


def test_a_folder_without_answers_gets_no_lock(tmp_path):
    assert forget(tmp_path, "a") == 0
    assert not list(tmp_path.iterdir())


def test_an_answer_goes_with_what_an_earlier_turn_recalled(tmp_path):
    with Bank.open(tmp_path / "bank") as bank:
        first, second = add_one(bank, "one thing"), add_one(bank, "another")
        bank.note_answer(replace(answer(1, second), earlier=(first,)))
        assert bank.answers()[0].earlier == (first,)
        assert bank.forget([first]).num_answers == 1
        assert bank.answers() == []


def test_an_answer_from_what_has_expired_is_not_repeated_and_leaves_the_file(tmp_path, clock):
    with Bank.open(tmp_path / "bank", clock=clock) as bank:
        bank.note_answer(answer(1, add_one(bank, "soon gone", expires=clock.now + 1)))
        assert len(bank.answers()) == 1
        clock.now += 2
        assert bank.answers() == []
        assert (bank.path / answers.FILE).read_bytes() == b""


def test_a_bank_in_ram_keeps_none():
    with Bank.open(None) as bank:
        assert not bank.note_answer(answer(1, add_one(bank, "one")))
        assert bank.answers() == []


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
    assert times(tmp_path) == []
