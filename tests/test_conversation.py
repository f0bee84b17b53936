"""Conversations in the shapes that clients send: each is parsed, or refused in one line; templates are adapted to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import remanence as rm
from remanence.conversation import Conversation, parse, token_ids
from remanence.errors import InputError, RemanenceError
from remanence.lm.tiny import byte_tokenizer, tiny_model

CALL = {"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": '{"who": "Ada"}'}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


class Role(Enum):
    USER = "user"


@dataclass
class DataMessage:
    role: str
    content: Any


class PydanticPart(BaseModel):
    type: str
    text: str


class PydanticMessage(BaseModel):
    role: str
    content: str | list[PydanticPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None


def generated() -> Iterator[Any]:
    yield user("Where is Ada?")
    yield DataMessage("assistant", "In Lund.")
    yield PydanticMessage(role="user", content=[PydanticPart(type="text", text="Since when?")])


@pytest.mark.parametrize(
    ("prompt", "texts", "question"),
    [
        ("Who?", ["Who?"], "Who?"),
        (np.str_("Who?"), ["Who?"], "Who?"),
        ([user("Who?")], ["Who?"], "Who?"),
        ((user("Who?"),), ["Who?"], "Who?"),
        ([user([{"type": "text", "text": "Who"}, {"type": "input_text", "text": "is it?"}])], ["Who\nis it?"], None),
        ([user(("Who", "is it?"))], ["Who\nis it?"], None),
        ([user([PydanticPart(type="text", text="Who?")])], ["Who?"], "Who?"),
        ([DataMessage("user", "Who?")], ["Who?"], "Who?"),
        ([SimpleNamespace(role=Role.USER, content="Who?")], ["Who?"], "Who?"),
        ([PydanticMessage(role="developer", content="Be brief."), user("Who?")], ["Be brief.", "Who?"], "Who?"),
        (generated(), ["Where is Ada?", "In Lund.", "Since when?"], "Since when?"),
        (
            [user("Who?"), {"role": "assistant", "content": None, "tool_calls": [CALL]}],
            ["Who?", '{"name": "lookup", "arguments": "{\\"who\\": \\"Ada\\"}"}'],
            "Who?",
        ),
        (
            [user("Who?"), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "Ada", "id": 1}],
            ["Who?", '{"name": "lookup", "arguments": "{\\"who\\": \\"Ada\\"}"}', "Ada"],
            "Who?",
        ),
        ([user("Who?"), {"role": "assistant", "content": None}, user("Ada?")], ["Who?", "Ada?"], "Ada?"),
        ([user("Who?"), {"role": "assistant", "content": []}], ["Who?"], "Who?"),
        ([user("Who?"), {"role": "assistant", "content": None, "refusal": "No."}], ["Who?", "No."], "Who?"),
        ([user("Who?"), {"role": "assistant", "content": "It is"}], ["Who?", "It is"], "Who?"),
        ([{"role": "system", "content": "Say hello."}], ["Say hello."], "Say hello."),
    ],
)
def test_shapes_that_are_understood(prompt: Any, texts: list[str], question: str | None):
    conversation = parse(prompt)
    assert [message["content"] for message in conversation.messages] == texts
    assert conversation.question == (question or texts[-1])
    assert {type(value) for message in conversation.messages for value in message.values()} == {str}
    assert {message["role"] for message in conversation.messages} <= {"system", "user", "assistant"}


REFUSED: list[tuple[Any, str]] = [
    (None, "the prompt is None"),
    (7, "the prompt is 7"),
    (float("nan"), "the prompt is nan"),
    (True, "the prompt is True"),
    (b"Who?", "decode it first"),
    (Path("question.txt"), r"the prompt is \w+\('question.txt'\)"),
    (user("Who?"), "put it in a list"),
    (DataMessage("user", "Who?"), "put it in a list"),
    ("", "the question' is empty"),
    (" \n ", "white space"),
    ("\ud800", "surrogate"),
    ("\0", "NUL"),
    ([], "the conversation is empty"),
    ([{"role": "assistant", "content": None}], "the conversation is empty"),
    (["Who?"], "message 1 is 'Who\\?'"),
    ([("user", "Who?")], "message 1 is"),
    ([None], "message 1 is None"),
    ([{}], "message 1 has no role"),
    ([{"content": "Who?"}], "message 1 has no role"),
    ([{"role": None, "content": "Who?"}], "message 1 has no role"),
    ([{"role": 3, "content": "Who?"}], "the role of message 1 is 3"),
    ([{"role": "usr", "content": "Who?"}], "did you mean 'user'"),
    ([{"role": "human", "content": "Who?"}], "has the role 'human'"),
    ([{"role": "user"}], r"message 1 \(user\) has no content"),
    ([user(None)], r"message 1 \(user\) has no content"),
    ([user("Who?"), {"role": "tool", "content": None}], r"message 2 \(tool\) has no content"),
    ([user([])], "the question' is empty"),
    ([user("")], "the question' is empty"),
    ([user("Who?"), user("")], "the question' is empty"),
    ([user(3)], "the content of message 1 is 3"),
    (np.array("Who?"), "the prompt is array"),
    ([user(np.array("Who?"))], "the content of message 1 is array"),
    ([user(b"Who?")], "the content of message 1 is b'Who"),
    ([user({"type": "text", "text": "Who?"})], "the content of message 1"),
    ([user([{"type": "image_url", "image_url": {"url": "x"}}])], "content part 1 of message 1 is of type 'image_url'"),
    ([user([{"type": "text", "text": "Who?"}, {"type": "input_audio"}])], "content part 2 .*'input_audio'"),
    ([user([{"type": "file"}])], "read text only"),
    ([user([{"type": "text"}])], "content part 1 of message 1: text is None"),
    ([user([{"type": "text", "text": 3}])], "text is 3"),
    ([user([{"text": "Who?"}])], "has no type"),
    ([user([{"type": ["text"], "text": "Who?"}])], "is of type"),
    ([user([None])], "content part 1 of message 1 is None"),
    ([user("Who\ud800?"), user("Who?")], "message 1' has a lone surrogate"),
    ([user("Who?"), {"role": "assistant", "tool_calls": "lookup"}], "tool_calls of message 2"),
    ([user("Who?"), {"role": "assistant", "tool_calls": np.array(3)}], "tool_calls of message 2"),
    ([user("Who?"), {"role": "assistant", "tool_calls": [{}]}], "a tool call of message 2 names no function"),
    ([user("Who?"), {"role": "assistant", "tool_calls": [None]}], "a tool call of message 2 names no function"),
]


@pytest.mark.parametrize(("prompt", "words"), REFUSED)
def test_what_is_refused_is_one_line_with_a_way_out(prompt: Any, words: str):
    with pytest.raises(InputError, match=words) as caught:
        parse(prompt)
    assert "\n" not in str(caught.value)
    assert " -> " in str(caught.value)


# -- any shape at all ------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3), st.just(Path("a"))
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(st.sampled_from(["type", "text", "function", "name", "arguments", "role", "x"]), inner),
    ),
    max_leaves=6,
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
PARTS = st.lists(
    st.one_of(
        TEXTS,
        st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "image_url", "refusal"]), "text": TEXTS}),
        ANYTHING,
    ),
    max_size=3,
)
CALLS = st.lists(st.one_of(st.just(CALL), ANYTHING), max_size=2)
MESSAGES = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "human"])},
        optional={"content": st.one_of(TEXTS, PARTS, ANYTHING), "tool_calls": st.one_of(CALLS, ANYTHING)},
    ),
    st.builds(DataMessage, st.sampled_from(["system", "user", "assistant"]), st.one_of(TEXTS, PARTS, ANYTHING)),
    ANYTHING,
)
PROMPTS = st.one_of(TEXTS, st.lists(MESSAGES, max_size=4), st.lists(MESSAGES, max_size=3).map(iter), ANYTHING)

TEMPLATES = {
    "plain": None,
    "own": "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>",
    "no_system": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}[assistant]"
    ),
    "drops_system": (
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}[{{ m.role }}]{{ m.content | trim }}"
        "{% endif %}{% endfor %}[assistant]"
    ),
    "alternates": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "[{{ m['role'] }}]{{ m['content'] | trim }}{% endfor %}[assistant]"
    ),
    "system_first": (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    ),
}


def with_template(name: str) -> rm.LM:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    return rm.from_transformers(tiny_model(), tokenizer, name)


LMS = {name: with_template(name) for name in TEMPLATES}


def parsed(prompt: Any) -> Conversation | RemanenceError:
    try:
        return parse(prompt)
    except RemanenceError as error:
        return error


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompt=PROMPTS)
@example(prompt=[{"role": "assistant", "content": "Hello."}, user("Who?")])
@example(prompt=[{"role": "system", "content": "Be brief."}])
@example(prompt=[user("Who?"), {"role": "system", "content": "Be brief."}])
@example(prompt=[user("Who?"), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "Ada"}])
def test_any_shape_is_an_answer_or_one_line(name: str, prompt: Any):
    conversation = parsed(prompt)
    if isinstance(conversation, RemanenceError):
        assert "\n" not in str(conversation)
        assert " -> " in str(conversation)
        return
    ids = token_ids(LMS[name], conversation.messages)
    assert ids
    assert all(isinstance(id, int) for id in ids)
    text = LMS[name].decode(ids)
    assert all(message["content"].strip() in text for message in conversation.messages), "nothing is left out"


# -- templates ---------------------------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}


def written(name: str, *messages: dict[str, str]) -> str:
    return LMS[name].decode(token_ids(LMS[name], messages))


def test_a_template_that_takes_the_messages_gets_them_as_they_are():
    messages = [SYSTEM, user("Who?")]
    assert token_ids(LMS["own"], messages) == LMS["own"].render(messages)
    assert written("system_first", *messages) == "[system]Be brief.[user]Who?[assistant]"


@pytest.mark.parametrize("name", ["no_system", "drops_system", "alternates"])
def test_without_a_system_role_its_text_goes_to_the_user(name: str):
    assert written(name, SYSTEM, user("Who?")) == "[user]Be brief.\n\nWho?[assistant]"
    assert written(name, SYSTEM) == "[user]Be brief.[assistant]"


def test_a_later_system_message_goes_to_the_next_words_of_the_user():
    answer = {"role": "assistant", "content": "Ada."}
    expected = "[user]Who?[assistant]Ada.[user]Be brief.\n\nWhere?[assistant]"
    assert written("system_first", user("Who?"), answer, SYSTEM, user("Where?")) == expected


def test_neighbours_of_one_role_are_joined_and_the_user_begins():
    assert written("alternates", user("Who?"), user("Where?")) == "[user]Who?\n\nWhere?[assistant]"
    hello = {"role": "assistant", "content": "Hello."}
    assert written("alternates", hello, user("Who?")) == "[user][assistant]Hello.[user]Who?[assistant]"
    assert written("alternates", SYSTEM, hello, user("Who?")) == "[user]Be brief.[assistant]Hello.[user]Who?[assistant]"


def test_a_template_that_refuses_everything_is_named_with_its_reason():
    lm = with_template("plain")
    lm.tokenizer.chat_template = "{{ raise_exception('only poems') }}"
    with pytest.raises(
        InputError, match=r"the chat template of plain refuses this conversation: .*only poems"
    ) as caught:
        token_ids(lm, [user("Who?")])
    assert "\n" not in str(caught.value)
    lm.tokenizer.chat_template = "{{ messages[0]['content'] + 3 }}"
    with pytest.raises(InputError, match="refuses this conversation: TypeError"):
        token_ids(lm, [user("Who?")])
