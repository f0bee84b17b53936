"""What every memory method promises: write references, read them for prompts, and read again while generating."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from remanence.lm.lm import LM
from remanence.methods.mplus.history import PoolHistory
from remanence.types import Chunk, Hit, Memory, Prefix


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: its tokens (BOS included) and the words to search with when it is short."""

    ids: tuple[int, ...]
    question: str = ""


class MemorySource(Protocol):
    """Where a method finds memories; a session makes one for each call."""

    def hits(self, query: str, limit: int) -> list[Hit]:
        """The chunks that matter for `query`, best first; empty when nothing does."""
        ...

    def memories(self, hits: Sequence[Hit]) -> list[Memory]:
        """What the method wrote of each hit: from the bank, or written now (cold start)."""
        ...

    def texts(self, limit_tokens: int) -> list[Hit]:
        """Everything in the bank, oldest first, up to `limit_tokens`."""
        ...

    def pool(self) -> PoolHistory:
        """The latent pool that has read the bank's texts, for methods that read one; the same one for all of a call."""
        ...

    def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """Those of these chunks that the bank still holds, in this order."""
        ...


@dataclass(frozen=True)
class Reading:
    """One reading for a batch: the tokens to run, the memory in front of them, and what was recalled.

    `prompts` may differ from what was asked (methods that recall text put it in front). `decoding` is the
    prefix for generated tokens (the last chunk's memories). `groups[row]` are stretches of the row that saw
    the same memories: (first token, hits), in order.
    """

    prompts: tuple[tuple[int, ...], ...]
    prefix: Prefix | None
    decoding: Prefix | None
    groups: tuple[tuple[tuple[int, tuple[Hit, ...]], ...], ...]
    memory_tokens: tuple[int, ...] = ()


class Method(ABC):
    """One paper, one file, one frozen config. Subclasses in this folder are found by their `name`."""

    name: ClassVar[str]
    presets: ClassVar[dict[str, Callable[[LM], Any]]]
    writes_tensors: ClassVar[bool] = True
    """False for methods that recall text: nothing but text is stored for them."""
    reads_pool: ClassVar[bool] = False
    """True for methods whose memory is one latent pool, which all texts of a bank have gone through."""
    role: ClassVar[str | None] = None
    """The model's adapter that reads (`lm/lora.py`)."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def read(self, lm: LM, recall: MemorySource, prompts: Sequence[Prompt]) -> Reading:
        """Memory for a batch of prompts, each of at least one token."""

    def is_about(self, lm: LM, recall: MemorySource, prompts: Sequence[Prompt]) -> list[bool]:
        """Whether to read memory at all for each prompt; what memory is not about is answered by the plain model."""
        return [True] * len(prompts)

    def refresh(self, lm: LM, recall: MemorySource, reading: Reading, rows: Sequence[Sequence[int]]) -> Reading:
        """`reading` with another `decoding` prefix; `rows` are all tokens so far, nothing for a row that has ended.

        Each row's `groups` grow by one that starts at its last token, which is run next. The default changes nothing.
        """
        return reading

    def shares(
        self, lm: LM, recall: MemorySource, reading: Reading, rows: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """For each row (prompt and answer), chunk id -> part of the answer's attention that went to its memory.

        Empty for methods whose recalled text is part of the prompt.
        """
        return [{} for _ in rows]

    def told(self, recall: MemorySource, reading: Reading, shares: Sequence[dict[str, float]]) -> Reading:
        """`reading` with its `groups`, for methods that know only afterwards what they read; else as it is."""
        return reading

    def write(self, lm: LM, references: Sequence[Sequence[int]]) -> list[Memory]:
        """What is kept of each reference (tokens, no BOS), written in one batch; gradients flow through it."""
        return []

    def reference_tokens(self) -> int:
        """The longest reference that `write` takes."""
        return 128

    def describe(self) -> dict[str, Any]:
        return {"method": self.name, **dataclasses.asdict(self.config)}

    def fingerprint(self, lm: LM) -> str:
        """SHA-256 (hex): memories are valid for exactly this model, method and config."""
        text = json.dumps([lm.fingerprint, str(lm.dtype), self.describe()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def text_layout(
    lm: LM, texts: Sequence[str], prompt_ids: Sequence[int], prefix_text: str = "Reference:"
) -> tuple[int, ...]:
    """Tokens of `<s>Reference: {text}\\n {text}\\n` and the prompt (its own BOS included); no texts: the prompt."""
    if not texts:
        return tuple(prompt_ids)
    references = [token for text in texts for token in lm.encode(f" {text}\n")]
    return (*lm.bos, *lm.encode(prefix_text), *references, *prompt_ids)
