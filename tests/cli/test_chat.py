from __future__ import annotations

import io
import sys

import pytest


@pytest.fixture
def chat(call, monkeypatch):
    def talk(*lines: str, options=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        return call("chat", "--max-tokens", "3", *options, model=True)

    return talk


def test_a_conversation_is_one_object(chat):
    outcome = chat(
        "/remember The gate code of Ost is 9021.", "What is the gate code of Ost?", "Thank you", options=["--json"]
    )
    first, second = outcome.json["turns"]
    assert first["user"] == "What is the gate code of Ost?"
    assert first["recalled"][0]["source"] == "chat"
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"], "the conversation is kept"
    assert outcome.code == 0


def test_each_message_is_answered_on_a_line(chat):
    outcome = chat("Hello", "/quit", "never read")
    assert outcome.out.count("\n") == 1


def test_why_and_forget(chat, call):
    outcome = chat("/remember The gate code of Ost is 9021.", "What is the gate code of Ost?", "/why", "/new", "/help")
    assert "9021" in outcome.err
    assert "/remember TEXT" in outcome.err
    (chunk,) = call("bank", "list", "--json").json["chunks"]
    outcome = chat("What is the gate code of Ost?", f"/forget {chunk['id']}", "/why")
    assert "nothing was asked yet" in outcome.err
    assert chunk["id"] not in outcome.err.split("starts again")[1], "/why does not repeat what was forgotten"
    assert chat("What is the gate code of Ost?", options=["--json"]).json["turns"][0]["recalled"] == []
    assert "9021" not in call("why", "--json").out


def test_an_error_costs_a_line_not_the_conversation(chat):
    outcome = chat("/forget 0123456789abcdef", "/forget", "/remember", "Hello", options=["--json"])
    assert outcome.code == 0
    assert outcome.err.count("error: ") == 3
    assert len(outcome.json["turns"]) == 1


def test_old_turns_make_room_for_new_ones(chat):
    outcome = chat(*(["word " * 150] * 4), options=["--json"])
    assert outcome.err == ""
    assert len(outcome.json["turns"]) == 4
    alone = chat("word " * 3000, options=["--json"])
    assert "positions" in alone.err


def test_an_answer_that_may_repeat_an_earlier_turn_is_forgotten_with_it(chat, call):
    chat("/remember The gate code of Ost is 9021.", "What is the gate code of Ost?", "Thank you")
    assert len(call("why", "--json").json["answers"]) == 2
    (chunk,) = call("bank", "list", "--json").json["chunks"]
    assert call("bank", "forget", chunk["id"], "--yes", "--json").json["num_answers"] == 2
