"""What a latent pool is compared with: as much text as fits, the newest text, and explicit memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remanence.bank import Bank
from remanence.eval.streams import Kept
from remanence.lm.decode import decode
from remanence.lm.lm import LM
from remanence.methods.base import text_layout
from remanence.session import Session

QUESTION_TOKENS = 64
"""Room that is kept for the question."""


class TextReader:
    """All text in front of the question ("full_context", until it no longer fits) or the newest ("sliding_window")."""

    def __init__(self, lm: LM, max_tokens: int) -> None:
        self.lm, self.max_tokens = lm, max_tokens
        self.room = lm.dims.max_positions - max_tokens - QUESTION_TOKENS - len(text_layout(lm, ["x"], []))
        self.chunks: list[tuple[str, int]] = []

    def right_after(self, name: str, kept: Sequence[Kept], batch_size: int) -> list[str]:
        return [self._answer(item, [(chunk, self._size(chunk)) for chunk in item.chunks]) for item in kept]

    def write(self, chunks: Sequence[str]) -> None:
        self.chunks += [(chunk, self._size(chunk)) for chunk in chunks]

    def ask(self, name: str, kept: Sequence[Kept], batch_size: int) -> list[str] | None:
        """None where all of the text does not fit."""
        if name == "full_context" and sum(size for _, size in self.chunks) > self.room:
            return None
        return [self._answer(item, self.chunks) for item in kept]

    def _answer(self, item: Kept, chunks: list[tuple[str, int]]) -> str:
        newest: list[str] = []
        room = self.room
        for chunk, size in reversed(chunks):
            room -= size
            if room < 0:
                break
            newest.append(chunk)
        question = self.lm.render([{"role": "user", "content": item.question}])
        ids = text_layout(self.lm, newest[::-1], question)
        *_, rows = decode(self.lm, [ids], max_tokens=self.max_tokens, stop=("\n", *self.lm.stop))
        return rows[0].text.strip()

    def _size(self, chunk: str) -> int:
        return len(self.lm.encode(f" {chunk}\n"))

    def close(self) -> None:
        self.chunks = []


class ExplicitReader:
    """Memory³ over a bank of all texts: each is found by search, and its memory made when it is first recalled."""

    def __init__(self, lm: LM, bank: Path, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.session = Session(lm, Bank.open(bank), "memory3")

    def right_after(self, name: str, kept: Sequence[Kept], batch_size: int) -> list[str]:
        """Of a bank that holds each question's passage alone."""
        answers = []
        for item in kept:
            with Session(self.session.lm, None, self.session.method) as own:
                for chunk in item.chunks:
                    own.write(chunk)
                answers.append(self._ask(own, [item.question])[0])
        return answers

    def write(self, chunks: Sequence[str]) -> None:
        for chunk in chunks:
            self.session.write(chunk, warm=False)

    def ask(self, name: str, kept: Sequence[Kept], batch_size: int) -> list[str]:
        questions = [item.question for item in kept]
        return [
            text
            for start in range(0, len(kept), batch_size)
            for text in self._ask(self.session, questions[start : start + batch_size])
        ]

    def _ask(self, session: Session, questions: Sequence[str]) -> list[str]:
        replies = session.generate_batch(list(questions), max_tokens=self.max_tokens, stop=("\n",))
        return [reply.text for reply in replies]

    def close(self) -> None:
        self.session.bank.close()
