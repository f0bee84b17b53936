"""What a latent pool is compared with: as much text as fits, the newest text, and explicit memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from remanence.bank import Bank
from remanence.eval.streams import Fact
from remanence.lm.decode import decode
from remanence.lm.lm import LM
from remanence.lm.proof import LayerPrefix, capture
from remanence.methods.base import text_layout
from remanence.session import Session
from remanence.text.formats import Document
from remanence.types import KV

QUESTION_TOKENS = 64
"""Room that is kept for the question."""
COMMIT_CHUNKS = 128


class TextReader:
    """All text in front of the question ("full_context", until it no longer fits) or the newest ("sliding_window")."""

    def __init__(self, lm: LM, max_tokens: int) -> None:
        self.lm, self.max_tokens = lm, max_tokens
        self.room = lm.dims.max_positions - max_tokens - QUESTION_TOKENS - len(text_layout(lm, ["x"], []))
        self.chunks: list[tuple[str, int]] = []

    def right_after(self, name: str, kept: Sequence[Fact], batch_size: int) -> list[str]:
        return [self._answers([item], [(c, self._size(c)) for c in item.chunks], 1)[0] for item in kept]

    def write(self, chunks: Sequence[str]) -> None:
        self.chunks += [(chunk, self._size(chunk)) for chunk in chunks]

    def flush(self) -> None:
        """Nothing waits."""

    def ask(self, name: str, kept: Sequence[Fact], batch_size: int) -> list[str] | None:
        """None where all of the text does not fit."""
        if name == "full_context" and sum(size for _, size in self.chunks) > self.room:
            return None
        return self._answers(kept, self.chunks, batch_size)

    def _answers(self, kept: Sequence[Fact], chunks: list[tuple[str, int]], batch_size: int) -> list[str]:
        """The newest text that fits goes through the model once, and all questions see its keys and values."""
        newest: list[str] = []
        room = self.room
        for chunk, size in reversed(chunks):
            room -= size
            if room < 0:
                break
            newest.append(chunk)
        prefix = self._prefix(text_layout(self.lm, newest[::-1], [])) if newest else None
        prompts = [self.lm.render([{"role": "user", "content": item.question}]) for item in kept]
        answers: list[str] = []
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            *_, rows = decode(self.lm, part, prefix, max_tokens=self.max_tokens, stop=("\n", *self.lm.stop))
            answers += [row.text.strip() for row in rows]
        return answers

    @torch.inference_mode()
    def _prefix(self, ids: Sequence[int]) -> LayerPrefix:
        ids_BT = torch.tensor([ids], device=self.lm.device)
        seen = capture(self.lm.model, ids_BT, frozenset(range(self.lm.dims.num_layers)), role=self.lm.reads_as)
        return LayerPrefix(tuple(KV(shown.key_BGSD, shown.value_BGSD) for _, shown in sorted(seen.items())), len(ids))

    def _size(self, chunk: str) -> int:
        return len(self.lm.encode(f" {chunk}\n"))

    def close(self) -> None:
        self.chunks = []


class ExplicitReader:
    """Memory³ over a bank of all texts: each is found by search, and its memory made when it is first recalled."""

    def __init__(self, lm: LM, bank: Path, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.session = Session(lm, Bank.open(bank), "memory3")
        self.held: list[Document] = []

    def right_after(self, name: str, kept: Sequence[Fact], batch_size: int) -> list[str]:
        """Of a bank that holds each question's passage alone."""
        answers = []
        for item in kept:
            with Session(self.session.lm, None, self.session.method) as own:
                for chunk in item.chunks:
                    own.write(chunk)
                answers.append(self._ask(own, [item.question])[0])
        return answers

    def write(self, chunks: Sequence[str]) -> None:
        self.held += [Document(chunk, "", {}) for chunk in chunks]
        if len(self.held) >= COMMIT_CHUNKS:
            self.flush()

    def flush(self) -> None:
        """Many texts are one commit: a commit each would measure the disk."""
        if self.held:
            self.session.write_documents(self.held, warm=False)
            self.held = []

    def ask(self, name: str, kept: Sequence[Fact], batch_size: int) -> list[str]:
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
