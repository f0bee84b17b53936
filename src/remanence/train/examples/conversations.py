"""Conversations from a file, for SFT and DPO: messages, references, and a rejected answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remanence.errors import InputError
from remanence.lm.lm import LM
from remanence.train.core.losses import ANSWER

Message = dict[str, str]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    messages: list[_Message] = Field(min_length=2)
    references: list[str] = []
    rejected: str | None = None


@dataclass(frozen=True)
class Conversation:
    """`messages` end with one of the assistant. Both answers of DPO are read with the same `references`.

    `rejected`: a worse answer than the last message, for DPO; None: the conversation is for SFT alone.
    """

    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    rejected: str | None = None


def read_conversations(path: Path) -> list[Conversation]:
    """Conversations of a file of JSON lines: `messages` (role, content), and optional `references` and `rejected`.

    InputError names the first line that does not have this form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}", "give a file of JSON lines") from error
    conversations = [_read(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not conversations:
        raise InputError(f"{str(path)!r} has no conversation", 'write {"messages": [...]} on each line')
    return conversations


def _read(path: Path, number: int, line: str) -> Conversation:
    where = f"{str(path)!r} line {number}"
    try:
        parsed = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        reason = ".".join(map(str, first["loc"])) or "the line"
        raise InputError(
            f"{where}: {reason}: {first['msg']}", 'write {"messages": [{"role": "user", "content": "…"}, …]}'
        ) from error
    if parsed.messages[-1].role != "assistant":
        raise InputError(
            f"{where} ends with a message of the {parsed.messages[-1].role}", "end it with one of the assistant"
        )
    return Conversation(tuple(m.model_dump() for m in parsed.messages), tuple(parsed.references), parsed.rejected)


def draw_conversations(conversations: Sequence[Conversation], seed: int, number: int, count: int) -> list[Conversation]:
    """Batch `number` of `count` conversations. Every epoch has all of them once, in its own order."""
    size, first = len(conversations), number * count
    epochs = range(first // size, (first + count - 1) // size + 1)
    orders = {epoch: _order(seed, epoch, size) for epoch in epochs}
    return [conversations[orders[place // size][place % size]] for place in range(first, first + count)]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> list[int]:
    return Random(f"{seed} epoch {epoch}").sample(range(size), size)


def encode_conversation(lm: LM, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """(ids, kinds) of a conversation in the model's chat template; only the assistant's messages are ANSWER.

    Each answer is tokenized separately, as when it is generated. InputError for a template that changes earlier
    messages when others follow.
    """
    ids, kinds, before = [*lm.bos], [0] * len(lm.bos), ""
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = _text(lm, messages[:number], True)
            whole = _text(lm, messages[: number + 1], False)
            for text, kind in ((prompt.removeprefix(before), 0), (whole.removeprefix(prompt), ANSWER)):
                part = lm.tokenizer.encode(text, add_special_tokens=False)
                part = part[len(lm.bos) :] if lm.bos and part[:1] == lm.bos else part
                ids, kinds = ids + part, kinds + [kind] * len(part)
            if not (prompt.startswith(before) and whole.startswith(prompt)):
                raise InputError(
                    f"the chat template of {lm.name} changes a message when others follow it",
                    "use a template that only appends",
                )
            before = whole
    return ids, kinds


def _text(lm: LM, messages: Sequence[Message], opens_answer: bool) -> str:
    """The messages as `LM.render` writes them. Without a template: one per line, an answer beside its question."""
    if lm.tokenizer.chat_template:
        return lm.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opens_answer)
    text = ""
    for message in messages:
        if message["role"] == "assistant":
            text += f" {message['content']}{lm.tokenizer.eos_token or ''}"
        else:
            text += ("\n" if text else "") + message["content"]
    return text
