"""The contract of a memory method: write references, read memory for prompts, and refresh it while generating."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from remanence.types import Chunk, Hit, Memory, Prefix

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.lm.lm import LM


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt (BOS included), and the question to search with; "" where there is none."""

    ids: tuple[int, ...]
    question: str = ""


class MemorySource(Protocol):
    """Where a method gets chunks and memories from. A session makes one for each call of `generate`."""

    def hits(self, query: str, limit: int) -> list[Hit]:
        """At most `limit` chunks that are relevant to `query`, best first; [] where none is."""
        ...

    def memories(self, hits: Sequence[Hit]) -> list[Memory]:
        """What the method wrote of each hit, in the same order. A missing memory is written now (cold start)."""
        ...

    def texts(self, limit_tokens: int) -> list[Hit]:
        """The chunks of the bank, oldest first, until `limit_tokens` are reached."""
        ...

    def state(self) -> object:
        """`MethodState.update` for this call: the same object until the call ends.

        For methods whose `open_state` returns a state; others never call it.
        """
        ...

    def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """The chunks with these ids, in this order, without those that the bank no longer holds."""
        ...


class MethodState(ABC):
    """What a method keeps between calls, beside the bank: one object for each session.

    A session treats the state's value as opaque. It only passes the value from `update` to the method, and from
    `snapshot` or `read` to `restore`. The bank's texts stay the source of truth: a state must be able to make its
    value again from them.
    """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that a value depends on beside the texts: model, method, config, seed."""

    @abstractmethod
    def update(self, without: Collection[str] = (), on_progress: Callable[[int], None] | None = None) -> object:
        """The value that has read exactly the visible chunks of the bank, except the ids in `without`.

        A session calls it before each answer and after each write. `on_progress` is called with the number of
        chunks of each step.
        """

    @abstractmethod
    def snapshot(self) -> object:
        """The value for all visible chunks, for `restore` in this or another session. It must not change later."""

    @abstractmethod
    def restore(self, value: object) -> None:
        """Continues from `value`, which `snapshot` or `read` returned. The next `update` reads what it lacks."""

    @abstractmethod
    def remove(self, ids: Collection[str]) -> None:
        """Makes sure that nothing in RAM depends on these chunks. The bank no longer holds them."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Writes the value into `folder`, for `Session.save`; names other than moment.json and texts.jsonl are free."""

    @abstractmethod
    def read(self, folder: Path) -> object | None:
        """The value that `write` left in `folder`; None where there is none. Changes nothing.

        Raises BankMismatch for a value of another fingerprint and BankCorrupted for a damaged one.
        """

    @property
    @abstractmethod
    def ids(self) -> set[str]:
        """The ids of all chunks that the value has read, any of which an answer may repeat."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of the value as it is now; nothing is read for it."""

    def num_merged(self, ids: Collection[str]) -> int:
        """How many of `ids` were read together with a neighbour (`Receipt.merged`)."""
        return 0

    def close(self) -> None:  # noqa: B027 (a state that keeps nothing on disk has nothing to do)
        """Keeps the value beside the bank, where it has changed: see `Bank.keep_pool`. The session ends."""


@dataclass(frozen=True)
class Reading:
    """Memory for one batch of prompts.

    `prompts`: the token ids to run, which may differ from those of the `Prompt` (methods that recall text put it in
    front). `prefix` is read by the prompts, `decoding` by the generated tokens. `groups[b]` are stretches of prompt b
    that read the same memories, in order: (first token, hits). `memory_tokens[b]`: memory tokens that a head of
    prompt b sees at most.
    """

    prompts: tuple[tuple[int, ...], ...]
    prefix: Prefix | None
    decoding: Prefix | None
    groups: tuple[tuple[tuple[int, tuple[Hit, ...]], ...], ...]
    memory_tokens: tuple[int, ...] = ()


class Method(ABC):
    """A memory method: one paper, one folder, one frozen config.

    A subclass in `remanence/methods/` is found by its `name`, and so is one of another package that has an entry
    point in the group `remanence.methods` (see `remanence.methods.load`). `presets` maps a name to a function that
    makes the config for a model; the first preset is the default.
    """

    name: ClassVar[str]
    presets: ClassVar[dict[str, Callable[[LM], Any]]]
    writes_tensors: ClassVar[bool] = True
    """False: `write` is never called, and the bank holds text only."""
    searches: ClassVar[bool] = True
    """False: `MemorySource.hits` is never called, so that a session makes no search vectors."""
    role: ClassVar[str | None] = None
    """The model's adapter that is active while this method reads (`lm/lora.py`); None: the model's own choice."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def read(self, lm: LM, memory_source: MemorySource, prompts: Sequence[Prompt]) -> Reading:
        """Memory for a batch of prompts, each of at least one token."""

    def is_about(self, lm: LM, memory_source: MemorySource, prompts: Sequence[Prompt]) -> list[bool]:
        """For each prompt, whether memory is read at all. The plain model answers the others."""
        return [True] * len(prompts)

    def refresh(
        self, lm: LM, memory_source: MemorySource, reading: Reading, sequences: Sequence[Sequence[int]]
    ) -> Reading:
        """`reading` with new memory for the tokens that follow; called every `Prefix.refresh_tokens` tokens.

        `sequences[b]`: the token ids of prompt b and its answer so far; empty where the answer has ended. The groups
        of each other prompt grow by one that starts at its last token, which is run next. Default: no change.
        """
        return reading

    def attention_shares(
        self, lm: LM, memory_source: MemorySource, reading: Reading, sequences: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """For each prompt, chunk id -> part of the answer's attention that its memory got, in (0, 1).

        `sequences[b]`: the token ids of prompt b and its whole answer. Default: {} for each, for methods whose
        recalled text is part of the prompt.
        """
        return [{} for _ in sequences]

    def attribute(self, memory_source: MemorySource, reading: Reading, shares: Sequence[dict[str, float]]) -> Reading:
        """`reading` with `groups`, for methods that know only from `attention_shares` what was read.

        Default: no change.
        """
        return reading

    def open_state(self, lm: LM, bank: Bank, seed: int) -> MethodState | None:
        """The state that this method keeps for one session; None (the default) for methods that keep none."""
        return None

    def write(self, lm: LM, references: Sequence[Sequence[int]]) -> list[Memory]:
        """One memory for each reference (token ids without BOS), written in one batch; gradients flow through it."""
        return []

    def reference_tokens(self) -> int:
        """The largest number of tokens of a reference; texts are split into chunks of at most so many."""
        return 128

    def describe(self) -> dict[str, Any]:
        """The method's name and every field of its config."""
        return {"method": self.name, **dataclasses.asdict(self.config)}

    def fingerprint(self, lm: LM) -> str:
        """SHA-256 (hex) of model, dtype, method and config: memories are valid for exactly these."""
        text = json.dumps([lm.fingerprint, str(lm.dtype), self.describe()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def text_layout(
    lm: LM, texts: Sequence[str], prompt_ids: Sequence[int], prefix_text: str = "Reference:"
) -> tuple[int, ...]:
    """Token ids of `<s>Reference: {text}\\n {text}\\n` and the prompt with its own BOS; no texts: the prompt alone."""
    if not texts:
        return tuple(prompt_ids)
    references = [token for text in texts for token in lm.encode(f" {text}\n")]
    return (*lm.bos, *lm.encode(prefix_text), *references, *prompt_ids)
