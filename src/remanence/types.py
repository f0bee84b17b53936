"""The nouns that every other file shares, and the letters of all tensor shapes.

B batch · T text tokens · M memory tokens · N slots of one memory · L memory layers · C model width
H query heads · G key/value heads · D head width · E search-key width · V vocabulary

A tensor's name ends in its shape: `key_BGMD`. Counts start with `num_`; units are suffixes
(`_tokens`, `_bytes`, `_seconds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class KV:
    """Keys (after RoPE) and values that stand in front of the text at one layer.

    `visible_BTM` (bool) says which text token sees which memory token; None: all see all.
    B may be 1 in all three and is broadcast over the batch.
    """

    key_BGMD: Tensor
    value_BGMD: Tensor
    visible_BTM: Tensor | None = None


class Prefix(Protocol):
    """One reading of memory; pass it to the model as `model(ids, memory=prefix)`."""

    @property
    def offset_tokens(self) -> int:
        """Positions of the text start here instead of at 0."""
        ...

    @property
    def refresh_tokens(self) -> int | None:
        """After so many generated tokens memory is read again; None: never."""
        ...

    def __call__(self, layer: int, hidden_BTC: Tensor) -> KV | None:
        """Keys and values for one layer, or None; `hidden_BTC` is what its attention is given."""
        ...


@dataclass(frozen=True)
class LayerPrefix:
    """A prefix that is already keys and values, one entry (or None) per layer."""

    kvs: tuple[KV | None, ...]
    offset_tokens: int = 0
    refresh_tokens: int | None = None

    def __call__(self, layer: int, hidden_BTC: Tensor) -> KV | None:
        return self.kvs[layer]


@dataclass(frozen=True)
class ExplicitMemory:
    """What Memory³ keeps of one reference (§3.3): selected keys and values per layer and KV head.

    `index_LGN` (int32) is the position of each kept token within the reference; -1 marks an empty
    slot (a reference shorter than N), which nothing may attend to.
    """

    layers: tuple[int, ...]
    key_LGND: Tensor
    value_LGND: Tensor
    index_LGN: Tensor

    @property
    def num_bytes(self) -> int:
        return self.key_LGND.nbytes + self.value_LGND.nbytes

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ExplicitMemory:
        return replace(
            self,
            key_LGND=self.key_LGND.to(device, dtype),
            value_LGND=self.value_LGND.to(device, dtype),
            index_LGN=self.index_LGN.to(device),
        )


Memory = ExplicitMemory


@dataclass(frozen=True)
class Piece:
    """A stretch of a document before it is stored: its text and where it stood (characters)."""

    text: str
    start: int
    end: int
    num_tokens: int


@dataclass(frozen=True)
class Chunk:
    """One stored text of at most 128 tokens: the truth that every tensor of a bank is made from.

    `id` is the first 16 hex digits of SHA-256(namespace, text): the same text is stored once.
    Times are seconds since 1970 (UTC); `expires` None means never.
    """

    id: str
    namespace: str
    text: str
    num_tokens: int
    source: str
    start: int
    end: int
    created: float
    expires: float | None = None
    supersedes: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """A chunk that a search found. `score` is in [0, 1]; `found_by` names each search and its rank."""

    chunk: Chunk
    score: float
    found_by: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Recall:
    """A memory that an answer was given from.

    `share` is the part of all attention (memory layers and heads, from the tokens that predict the answer)
    that went to it; None where it was not measured.
    """

    id: str
    text: str
    source: str
    score: float
    share: float | None = None


@dataclass(frozen=True)
class Receipt:
    """What a write stored. `skipped` are ids that the bank already held.

    `merged`: of the new chunks, so many are short ones that a latent pool has read together with their neighbours.
    """

    ids: tuple[str, ...]
    skipped: tuple[str, ...]
    num_documents: int
    num_tokens: int
    num_bytes: int
    seconds: float
    merged: int = 0

    @property
    def num_chunks(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ForgetReceipt:
    """What a forget removed. `num_answers`: so many of the answers that are kept for `why`.

    `exact`: it was read back that no table, latent pool or answer of the bank is left that was derived from it.
    `bytes_gone`: no file holds its bytes. That is so in RAM; on disk it is for `compact` to do, and to say.
    """

    ids: tuple[str, ...]
    num_memories: int
    exact: bool
    bytes_gone: bool
    num_answers: int = 0


@dataclass(frozen=True)
class Usage:
    """Tokens that an answer cost, and how many memory slots a head could see at once in the prompt."""

    prompt_tokens: int
    completion_tokens: int
    memory_tokens: int


@dataclass(frozen=True)
class Reply:
    """An answer and where it came from. `finish` is "stop" or "length"."""

    text: str
    recalled: Sequence[Recall]
    usage: Usage
    seconds: float
    first_token_seconds: float
    finish: str
