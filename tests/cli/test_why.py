from __future__ import annotations

import pytest

from remanence.bank import Bank, answers

QUESTION = "How many steps does the lighthouse of Skerry Point have?"


def ask(call, question=QUESTION, *options) -> dict:
    return call("ask", question, "--max-tokens", "3", "--json", *options, model=True).json


def test_nothing_asked_yet(call, bank):
    outcome = call("why")
    assert outcome.code == 2
    assert "nothing was asked in bank 'bank' yet" in outcome.err


def test_a_suggested_command_can_be_pasted_whatever_the_bank_is_called(call, bank, tmp_path):
    assert "--bank 'my bank'`" in call("why", "--bank", "my bank").err
    bank.rename(tmp_path / "my bank")
    assert "--bank 'my bank'`" in call("why", "--bank", "my bank").err


def test_the_last_answers_newest_first(call, bank):
    first, second = ask(call), ask(call, "What is the code of the garden gate?")
    found = call("why", "--json").json["answers"]
    assert [answer["answer"] for answer in found] == [second["text"], first["text"]]
    assert found[1]["recalled"] == first["recalled"], "texts are looked up in the bank"
    assert len(call("why", "--last", "1", "--json").json["answers"]) == 1


def test_for_people(call, bank):
    ask(call)
    outcome = call("why")
    assert QUESTION in outcome.out
    assert "94 steps" in outcome.out
    assert "of attention" in outcome.out


def test_the_answer_without_a_memory(call, bank, ids):
    asked = ask(call)
    both = call("why", "--without", ids["lighthouse.txt"], "--model", "tiny", "--json").json
    assert both["question"] == QUESTION
    assert both["answer"]["text"] == asked["text"]
    assert both["answer"]["recalled"]
    assert ids["lighthouse.txt"] not in [recall["id"] for recall in both["answer_without"]["recalled"]]
    shown = call("why", "--without", ids["lighthouse.txt"], model=True)
    assert "with all memories" in shown.out


def test_an_unknown_id_is_refused(call, bank):
    ask(call)
    outcome = call("why", "--without", "0123456789abcdef", model=True)
    assert outcome.code == 2
    assert "0123456789abcdef" in outcome.err


def test_namespaces_do_not_see_each_other(call, bank):
    ask(call)
    assert call("why", "--namespace", "other").code == 2


def test_forgetting_scrubs_the_answers_that_repeat_it(call, bank, ids):
    ask(call)
    ask(call, "What is the code of the garden gate?")
    assert call("bank", "forget", ids["lighthouse.txt"], "--yes", "--json").json["num_answers"] == 1
    assert QUESTION not in (bank / answers.FILE).read_text()
    (left,) = call("why", "--json").json["answers"]
    assert left["question"] == "What is the code of the garden gate?"


@pytest.mark.parametrize("command", [["why"], ["bank", "compact"]])
def test_what_was_forgotten_elsewhere_is_not_repeated_either(call, bank, ids, command):
    ask(call)
    with Bank.open(bank) as opened:
        opened.forget([ids["lighthouse.txt"]])
    call(*command)
    assert QUESTION not in (bank / answers.FILE).read_text()


def test_a_model_that_only_the_banks_file_names_is_not_loaded(call, bank, ids):
    ask(call)
    path = bank / answers.FILE
    path.write_text(path.read_text().replace('"model": "tiny"', '"model": "some body/model"'))
    outcome = call("why", "--without", ids["lighthouse.txt"])
    assert outcome.code == 2
    assert "add `--model 'some body/model'`" in outcome.err
    assert call("why", "--without", ids["lighthouse.txt"], model=True).code == 0, "a model that is typed is taken"
