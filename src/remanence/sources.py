"""Where a method's memories come from: search the bank, load what was written, write what is missing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from remanence.errors import BankMismatch, UnknownChunk
from remanence.methods.base import Method, MethodState
from remanence.types import Chunk, Hit, Memory

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.lm.lm import LM
    from remanence.text.retrieve import Retriever

WRITE_BATCH = 16
"""References that one forward pass writes."""
PAGE_CHUNKS = 256
"""Chunks that `texts` reads from the bank at once."""


class BankSource:
    """The `MemorySource` of one call. `without`: ids of chunks that must not be recalled in it.

    `state`: what the session keeps for a method that has one.
    """

    def __init__(
        self,
        lm: LM,
        method: Method,
        bank: Bank,
        retriever: Retriever,
        without: Collection[str] = (),
        state: MethodState | None = None,
    ) -> None:
        self.lm, self.method, self.bank, self.retriever = lm, method, bank, retriever
        self.without = frozenset(without)
        self._state = state
        self._value: object = None

    def state(self) -> object:
        """See `MemorySource.state`."""
        assert self._state is not None, f"{self.method.name} has no state: its open_state returned None"
        if self._value is None:
            self._value = self._state.update(self.without)
        return self._value

    def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """See `MemorySource.chunks`. A chunk may be forgotten while an answer is generated."""
        live = self.bank.texts(ids)
        return self.bank.get([id for id in ids if id in live])

    def hits(self, query: str, limit: int) -> list[Hit]:
        """See `MemorySource.hits`."""
        return self.retriever.search(query, limit, self.without)

    def memories(self, hits: Sequence[Hit]) -> list[Memory]:
        """See `MemorySource.memories`. What is written now is stored in the bank too."""
        return load_or_write(self.lm, self.method, self.bank, [hit.chunk for hit in hits])

    def texts(self, limit_tokens: int) -> list[Hit]:
        """See `MemorySource.texts`."""
        hits, offset = [], 0
        while page := self.bank.list(limit=PAGE_CHUNKS, offset=offset):
            for chunk in page:
                if chunk.id in self.without:
                    continue
                limit_tokens -= chunk.num_tokens
                if limit_tokens < 0:
                    return hits
                hits.append(Hit(chunk, 1.0))
            offset += len(page)
        return hits


def load_or_write(lm: LM, method: Method, bank: Bank, chunks: Sequence[Chunk]) -> list[Memory]:
    """One memory for each chunk, as the bank holds it; a missing one is written and stored first.

    Raises UnknownChunk for a chunk that was forgotten meanwhile.
    """
    fingerprint = method.fingerprint(lm)
    ids = [chunk.id for chunk in chunks]
    loaded = bank.load(fingerprint, ids) if ids else []
    missing = [chunk for chunk, memory in zip(chunks, loaded, strict=True) if memory is None]
    if not missing:
        return [memory for memory in loaded if memory is not None]
    bank.put_memories(
        fingerprint,
        [chunk.id for chunk in missing],
        write_chunks(lm, method, missing),
        description=describe(lm, method),
    )
    # Read back, so that the first recall sees what every later one sees: the bank rounds to its codec.
    written = bank.load(fingerprint, ids)
    if None in written:
        raise UnknownChunk(f"chunk {ids[written.index(None)]!r} was forgotten meanwhile", "ask again")
    return [memory for memory in written if memory is not None]


def describe(lm: LM, method: Method) -> dict[str, str]:
    """What a fingerprint stands for, as text: the model, and the method with every setting."""
    settings = {name: value for name, value in method.describe().items() if name != "method"}
    words = ", ".join(f"{name}={value}" for name, value in settings.items())
    return {"model": lm.name, "method": f"{method.name}({words})"}


@torch.inference_mode()
def write_chunks(lm: LM, method: Method, chunks: Sequence[Chunk]) -> list[Memory]:
    """One memory for each chunk, written in batches of chunks of similar length.

    Raises BankMismatch for a chunk with more tokens than one memory holds.
    """
    references = [_tokens(lm, method, chunk) for chunk in chunks]
    order = sorted(range(len(chunks)), key=lambda i: len(references[i]))
    memories: dict[int, Memory] = {}
    for start in range(0, len(order), WRITE_BATCH):
        batch = order[start : start + WRITE_BATCH]
        memories |= zip(batch, method.write(lm, [references[i] for i in batch]), strict=True)
    return [memories[i] for i in range(len(chunks))]


def _tokens(lm: LM, method: Method, chunk: Chunk) -> list[int]:
    ids = lm.encode(chunk.text)
    if len(ids) > method.reference_tokens():
        raise BankMismatch(
            f"chunk {chunk.id} has {len(ids)} tokens for {lm.name}, a memory holds {method.reference_tokens()}",
            "split it for this model: `remanence bank migrate` with the same --bank, --model and --method as now",
        )
    return ids
