"""Conversations of a file, for SFT and DPO: messages, what they may look up, and an answer that is worse."""

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
from remanence.train.losses import ANSWER

Message = dict[str, str]


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    messages: list[_Said] = Field(min_length=2)
    references: list[str] = []
    rejected: str | None = None


@dataclass(frozen=True)
class Conversation:
    """`messages` end with the assistant's; `references` are found beforehand, the same for both answers of DPO.

    `rejected`: what might have been said instead of the last message (None: SFT alone can use it).
    """

    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    rejected: str | None = None


def read_conversations(path: Path) -> list[Conversation]:
    """JSON lines of `messages` (role, content), and where wanted `references` and `rejected`.

    InputError names the first line that is not one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}", "give a file of JSON lines") from error
    found = [_read(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{str(path)!r} has no conversation", 'write {"messages": [...]} on each line')
    return found


def _read(path: Path, number: int, line: str) -> Conversation:
    where = f"{str(path)!r} line {number}"
    try:
        told = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        reason = ".".join(map(str, first["loc"])) or "the line"
        raise InputError(
            f"{where}: {reason}: {first['msg']}", 'write {"messages": [{"role": "user", "content": "…"}, …]}'
        ) from error
    if told.messages[-1].role != "assistant":
        raise InputError(f"{where} ends with the {told.messages[-1].role}'s words", "end with the assistant's")
    return Conversation(tuple(m.model_dump() for m in told.messages), tuple(told.references), told.rejected)


def drawn(conversations: Sequence[Conversation], seed: int, number: int, count: int) -> list[Conversation]:
    """Batch `number` of `count`: every conversation once an epoch, in another order in each."""
    size, first = len(conversations), number * count
    epochs = range(first // size, (first + count - 1) // size + 1)
    orders = {epoch: _order(seed, epoch, size) for epoch in epochs}
    return [conversations[orders[place // size][place % size]] for place in range(first, first + count)]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> list[int]:
    return Random(f"{seed} epoch {epoch}").sample(range(size), size)


def spoken(lm: LM, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """(ids, kinds) of a conversation as the model's chat template writes it; only the assistant's words are ANSWER.

    Each answer is cut into tokens by itself, as it is when it is generated.
    """
    ids, kinds, so_far = [*lm.bos], [0] * len(lm.bos), ""
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            asked, told = _text(lm, messages[:number], True), _text(lm, messages[: number + 1], False)
            for text, kind in ((asked.removeprefix(so_far), 0), (told.removeprefix(asked), ANSWER)):
                part = lm.tokenizer.encode(text, add_special_tokens=False)
                part = part[len(lm.bos) :] if lm.bos and part[:1] == lm.bos else part
                ids, kinds = ids + part, kinds + [kind] * len(part)
            if not (asked.startswith(so_far) and told.startswith(asked)):
                raise InputError(
                    f"the chat template of {lm.name} writes a message anew when others follow it",
                    "use a template that only adds to what was said",
                )
            so_far = told
    return ids, kinds


def _text(lm: LM, messages: Sequence[Message], asks: bool) -> str:
    """As `LM.render` writes them; without a template one message a line, an answer beside its question."""
    if lm.tokenizer.chat_template:
        return lm.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)
    text = ""
    for message in messages:
        if message["role"] == "assistant":
            text += f" {message['content']}{lm.tokenizer.eos_token or ''}"
        else:
            text += ("\n" if text else "") + message["content"]
    return text
