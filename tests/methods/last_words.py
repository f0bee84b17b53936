"""A method of another package that keeps a state: it puts the newest texts of the bank in front of every prompt.

`test_plugins.py` installs this file as a distribution of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from remanence.errors import BankMismatch
from remanence.methods import MemorySource, Method, MethodState, Prompt, Reading
from remanence.methods.base import text_layout
from remanence.tensor_file import read_tensors, write_tensors

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.lm.lm import LM

Value = tuple[tuple[str, str], ...]
"""(id, text) of each chunk that was read, oldest first."""


@dataclass(frozen=True)
class LastWordsConfig:
    num_texts: int = 2


class LastWordsState(MethodState):
    def __init__(self, fingerprint: str, bank: Bank) -> None:
        self._fingerprint, self.bank = fingerprint, bank
        self._value: Value | None = None
        self.num_read = 0

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def update(self, without: Collection[str] = (), on_progress: Callable[[int], None] | None = None) -> Value:
        held = dict(self._held())
        chunks = self.bank.list()
        fresh = [chunk for chunk in chunks if chunk.id not in held]
        self.num_read += len(fresh)
        if on_progress and fresh:
            on_progress(len(fresh))
        self._value = tuple((chunk.id, chunk.text) for chunk in chunks)
        return tuple(pair for pair in self._value if pair[0] not in without)

    def snapshot(self) -> Value:
        return self.update()

    def restore(self, value: object) -> None:
        assert isinstance(value, tuple)
        self._value = value

    def remove(self, ids: Collection[str]) -> None:
        self._value = tuple(pair for pair in self._held() if pair[0] not in ids)

    def write(self, folder: Path) -> None:
        (folder / "words.json").write_text(json.dumps([self.fingerprint, self.update()]))

    def read(self, folder: Path) -> Value | None:
        if not (folder / "words.json").exists():
            return None
        fingerprint, pairs = json.loads((folder / "words.json").read_text())
        if fingerprint != self.fingerprint:
            raise BankMismatch("these words are of another model", "write them again")
        return tuple((id, text) for id, text in pairs)

    @property
    def ids(self) -> set[str]:
        return {id for id, _ in self._value or ()}

    @property
    def num_bytes(self) -> int:
        return sum(len(text) for _, text in self._value or ())

    def close(self) -> None:
        metadata = {"words": json.dumps(self._held())}
        self.bank.keep_pool(
            self.fingerprint, self.ids, lambda path: write_tensors(path, {"none": torch.zeros(1)}, metadata)
        )

    def _held(self) -> Value:
        file = self.bank.pool_file(self.fingerprint)
        if self._value is None and file is not None and file.is_file():
            metadata, _ = read_tensors(file)
            self._value = tuple((id, text) for id, text in json.loads(metadata["words"]))
        return self._value or ()


class LastWords(Method):
    name: ClassVar[str] = "last_words"
    presets: ClassVar = {"two": lambda lm: LastWordsConfig(), "one": lambda lm: LastWordsConfig(1)}
    writes_tensors: ClassVar[bool] = False
    searches: ClassVar[bool] = False
    config: LastWordsConfig

    def read(self, lm: LM, memory_source: MemorySource, prompts: Sequence[Prompt]) -> Reading:
        pairs = memory_source.state()
        assert isinstance(pairs, tuple)
        texts = [text for _, text in pairs[-self.config.num_texts :]]
        ids = tuple(text_layout(lm, texts, prompt.ids, "Last words:") for prompt in prompts)
        return Reading(ids, None, None, tuple(((0, ()),) for _ in prompts))

    def open_state(self, lm: LM, bank: Bank, seed: int) -> LastWordsState:
        return LastWordsState(hashlib.sha256(f"{self.fingerprint(lm)} {seed}".encode()).hexdigest(), bank)
