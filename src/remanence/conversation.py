"""Conversations in the shapes that OpenAI clients send: parsed into roles and text, then written for a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from remanence.arguments import each, shown, string
from remanence.errors import InputError, suggest
from remanence.text.decode import check_text

if TYPE_CHECKING:
    from remanence.lm.lm import LM

Message = dict[str, str]
"""{"role": "system", "user" or "assistant", "content": text}."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
    "function": "user",
}
"""Role of a client -> role of a `Message`. A model reads the result of a tool as words of the user."""
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Type of a content part -> the field that holds its text."""
SHAPE = 'give {"role": "user", "content": "…"}'


@dataclass(frozen=True)
class Conversation:
    """`messages` with roles and text only, and the `question`: the last words of the user, to search with."""

    messages: tuple[Message, ...]
    question: str


def parse(prompt: object) -> Conversation:
    """A question, or the messages of a conversation.

    `prompt`: a str, or an iterable of messages. A message is a mapping, or an object with the attributes `role` and
    `content` (pydantic, a dataclass). Content is a str, None, or parts such as {"type": "text", "text": "…"}, joined
    by line breaks. Calls of tools are written as JSON; an assistant's message without anything is left out.

    Raises InputError for anything else: other roles, images, audio and files, and a question without a word.
    """
    if isinstance(prompt, str):
        text = check_text(str.__str__(prompt), "the question")
        return Conversation(({"role": "user", "content": text},), text)
    hint = f"ask with a str, or with a list of messages: {SHAPE}"
    if isinstance(prompt, bytes | bytearray):
        string("the prompt", prompt)
    if isinstance(prompt, Mapping) or (hasattr(prompt, "role") and hasattr(prompt, "content")):
        raise InputError("the prompt is one message, no conversation", "put it in a list")
    items = each(prompt)
    if items is None:
        raise InputError(f"the prompt is {shown(prompt)}", hint)
    messages: list[Message] = []
    question = ""
    for number, raw in enumerate(items, 1):
        role, text = _message(raw, f"message {number}")
        if role == "assistant" and not text:
            continue
        if role == "user":
            question = text
        messages.append({"role": ROLES[role], "content": text})
    if not messages:
        raise InputError("the conversation is empty", "ask a question of at least one word")
    question = question if question.strip() else messages[-1]["content"]
    return Conversation(tuple(messages), check_text(question, "the question"))


def _message(raw: object, where: str) -> tuple[str, str]:
    """(role of the client, text) of one message."""
    if isinstance(raw, str | bytes) or not (isinstance(raw, Mapping) or hasattr(raw, "role")):
        raise InputError(f"{where} is {shown(raw)}", f"a message has a role and content: {SHAPE}")
    role = _field(raw, "role")
    role = role.value if isinstance(role, Enum) else role
    if role is None:
        raise InputError(f"{where} has no role", SHAPE)
    role = string(f"the role of {where}", role, f"use one of {', '.join(ROLES)}")
    if role not in ROLES:
        raise InputError(f"{where} has the role {role!r}", suggest(role, sorted(ROLES)))
    pieces = [text for text in [_text(_field(raw, "content"), where), *_calls(raw, role, where)] if text]
    text = "\n".join(pieces)
    if not pieces and _field(raw, "content") is None and role != "assistant":
        raise InputError(f"{where} ({role}) has no content", SHAPE)
    if text.strip():
        check_text(text, where)
    return role, text


def _text(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return str.__str__(content)
    hint = 'give a str, or parts such as {"type": "text", "text": "…"}'
    parts = each(content)
    if parts is None:
        raise InputError(f"the content of {where} is {shown(content)}", hint)
    return "\n".join(_part(part, f"content part {n} of {where}", hint) for n, part in enumerate(parts, 1))


def _part(part: object, where: str, hint: str) -> str:
    if isinstance(part, str):
        return str.__str__(part)
    kind = _field(part, "type")
    kind = kind.value if isinstance(kind, Enum) else kind
    if kind is None:
        raise InputError(f"{where} is {shown(part)}, which has no type", hint)
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise InputError(f"{where} is of type {shown(kind)}", "leave it out: these models read text only")
    return string(f"{where}: {TEXT_PARTS[kind]}", _field(part, TEXT_PARTS[kind]), hint)


def _calls(raw: object, role: str, where: str) -> Iterator[str]:
    """Calls of tools as JSON, one a line, and a refusal as text, where the assistant's message has any."""
    if role != "assistant":
        return
    refusal = _field(raw, "refusal")
    if isinstance(refusal, str):
        yield refusal
    calls = _field(raw, "tool_calls")
    old_call = _field(raw, "function_call")
    items = each(() if calls is None else calls)
    if items is None:
        raise InputError(f"tool_calls of {where} are {shown(calls)}", "give a list of calls")
    functions = [] if old_call is None else [old_call]
    for function in [*functions, *(_field(call, "function") for call in items)]:
        name, arguments = _field(function, "name"), _field(function, "arguments")
        if not isinstance(name, str):
            raise InputError(
                f"a tool call of {where} names no function",
                'give {"type": "function", "function": {"name": "…", "arguments": "…"}}',
            )
        yield json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False, default=str)


def _field(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def token_ids(lm: LM, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to the next answer, BOS included, as the model's chat template writes it.

    Where the template refuses the messages, or leaves a system message out: system text is put in front of the next
    words of the user, then neighbours of one role are joined, then an empty message of the user comes first. Raises
    InputError, with the template's reason, where it refuses that too.
    """
    if not lm.tokenizer.chat_template:
        return lm.render(messages)
    reason = ""
    for variant in _variants(messages):
        try:
            text = lm.tokenizer.apply_chat_template(variant, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of the model's authors: it may raise anything
            reason = reason or f"{type(error).__name__}: {error}"
            continue
        if all(message["content"].strip() in text for message in variant if message["role"] == "system"):
            return lm.render(variant)
        reason = reason or "it leaves the system message out"
    raise InputError(
        f"the chat template of {lm.name} refuses this conversation: {reason}",
        "begin with the user, let user and assistant alternate, and leave out what the template does not know",
    )


def _variants(messages: Sequence[Message]) -> Iterator[list[Message]]:
    variant = [dict(message) for message in messages]
    yield variant
    for change in (_without_system, _joined, _begun_by_user):
        changed = change(variant)
        if changed != variant:
            yield changed
        variant = changed


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """System text in front of the next words of the user, or as words of the user where none follow."""
    changed: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif waiting and message["role"] == "user":
            changed.append({"role": "user", "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            changed += [{"role": "user", "content": "\n\n".join(waiting)}] if waiting else []
            changed.append(message)
            waiting = []
    return [*changed, {"role": "user", "content": "\n\n".join(waiting)}] if waiting else changed


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message."""
    changed: list[Message] = []
    for message in messages:
        if changed and changed[-1]["role"] == message["role"]:
            content = "\n\n".join(text for text in (changed[-1]["content"], message["content"]) if text)
            changed[-1] = {"role": message["role"], "content": content}
        else:
            changed.append(message)
    return changed


def _begun_by_user(messages: Sequence[Message]) -> list[Message]:
    is_begun = bool(messages) and messages[0]["role"] == "user"
    return list(messages) if is_begun else [{"role": "user", "content": ""}, *messages]
