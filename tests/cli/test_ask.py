from __future__ import annotations

import io
import sys

import pytest

from remanence.bank import answers
from remanence.cli import ask as ask_module

QUESTION = "How many steps does the lighthouse of Skerry Point have?"


def test_json_has_the_documented_shape(call, bank):
    reply = call("ask", QUESTION, "--max-tokens", "4", "--json", model=True).json
    assert {"text", "recalled", "usage", "seconds"} <= reply.keys()
    (recall,) = reply["recalled"]
    assert recall.keys() == {"id", "text", "source", "score", "share"}
    assert recall["source"] == "lighthouse.txt"
    assert 0 <= recall["share"] <= 1
    assert reply["usage"]["completion_tokens"] <= 4


def test_the_answer_is_alone_on_standard_output(call, bank):
    outcome = call("ask", QUESTION, "--max-tokens", "4", model=True)
    assert "lighthouse.txt" in outcome.err
    assert "lighthouse.txt" not in outcome.out
    assert outcome.out.endswith("\n")


def test_the_same_question_has_the_same_answer(call, bank):
    sampled = ["ask", QUESTION, "--max-tokens", "6", "--temperature", "1", "--seed", "3", "--json"]
    assert call(*sampled, model=True).json["text"] == call(*sampled, model=True).json["text"]


def test_without_memory_and_without_one_memory(call, bank, ids):
    assert call("ask", QUESTION, "--no-memory", "--json", model=True).json["recalled"] == []
    left = call("ask", QUESTION, "--without", ids["lighthouse.txt"], "--json", model=True).json["recalled"]
    assert ids["lighthouse.txt"] not in [recall["id"] for recall in left]


def test_nothing_relevant_says_so(call, bank):
    outcome = call("ask", "Who composed this opera?", "--max-tokens", "2", model=True)
    assert outcome.code == 0
    assert "nothing recalled" in outcome.err


def test_a_question_from_standard_input(call, bank, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION))
    assert call("ask", "--max-tokens", "2", "--json", model=True).json["recalled"]


def test_an_empty_question_is_refused(call, bank):
    outcome = call("ask", " ", model=True)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "'the question' holds only white space" in outcome.err


@pytest.mark.parametrize(("data", "said"), [(b"caf\xe9?", "not UTF-8"), (b"", "is empty"), (b"a\0b", "binary")])
def test_an_unusable_question_from_standard_input(call, bank, monkeypatch, data, said):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    outcome = call("ask", model=True)
    assert outcome.code == 2
    assert said in outcome.err


def test_a_question_of_broken_bytes_on_the_command_line(call, bank):
    outcome = call("ask", "caf\udce9?", model=True)
    assert outcome.code == 2
    assert "lone surrogate" in outcome.err


def test_a_question_longer_than_the_context_is_refused(call, bank):
    outcome = call("ask", "why " * 2000, model=True)
    assert outcome.code == 2
    assert "positions" in outcome.err


def test_a_bank_of_another_method_is_refused(call, bank):
    outcome = call("ask", QUESTION, "--method", "memory3:dense", model=True)
    assert outcome.code == 2
    assert "remanence bank migrate" in outcome.err


def test_an_unknown_method_is_answered_with_the_nearest(call, bank):
    outcome = call("ask", QUESTION, "--method", "memori3", model=True)
    assert outcome.code == 2
    assert "did you mean 'memory3'" in outcome.err


def test_a_damaged_memory_is_refused_never_answered_from(call, bank):
    for payload in bank.glob("memories-*/data/*"):
        data = bytearray(payload.read_bytes())
        data[data.index(b'"layers"') + 600] ^= 1  # well within the tensors
        payload.write_bytes(data)
    outcome = call("ask", QUESTION, model=True)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1


def test_an_answer_whose_memory_is_forgotten_meanwhile_is_not_kept(call, bank, ids, monkeypatch):
    answer = ask_module.answer

    def answer_then_forget(session, *args, **kwargs):
        reply = answer(session, *args, **kwargs)
        session.forget(ids["lighthouse.txt"])
        return reply

    monkeypatch.setattr(ask_module, "answer", answer_then_forget)
    assert call("ask", QUESTION, "--max-tokens", "2", "--json", model=True).json["recalled"]
    assert answers.Answers(bank).last("default", 1) == []
