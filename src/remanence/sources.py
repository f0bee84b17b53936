"""Where a method's memories come from: search the bank, load what was written, write what is missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import torch

from remanence.errors import BankMismatch, UnknownChunk
from remanence.lm.lm import LM
from remanence.methods.base import Method
from remanence.methods.mplus.history import PoolHistory
from remanence.types import Chunk, Hit, Memory

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.text.retrieve import Retriever

WRITE_BATCH = 16


class BankSource:
    """The `MemorySource` of one call: `without` are chunk ids that must not be recalled in it."""

    def __init__(
        self,
        lm: LM,
        method: Method,
        bank: Bank,
        retriever: Retriever,
        without: Collection[str] = (),
        pool: Callable[[Collection[str]], PoolHistory] | None = None,
    ) -> None:
        self.lm, self.method, self.bank, self.retriever = lm, method, bank, retriever
        self.without = frozenset(without)
        self._pool = pool
        self._kept: PoolHistory | None = None

    def pool(self) -> PoolHistory:
        assert self._pool is not None, "only methods that read a pool ask for it"
        self._kept = self._kept or self._pool(self.without)
        return self._kept

    def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """Without those that went meanwhile: an answer that is there already is given."""
        live = self.bank.texts(ids)
        return self.bank.get([id for id in ids if id in live])

    def hits(self, query: str, limit: int) -> list[Hit]:
        return self.retriever.search(query, limit, self.without)

    def memories(self, hits: Sequence[Hit]) -> list[Memory]:
        """Parallel to `hits`; a chunk that has no memory yet is written and stored (cold start)."""
        return load_or_write(self.lm, self.method, self.bank, [hit.chunk for hit in hits])

    def texts(self, limit_tokens: int) -> list[Hit]:
        hits, offset = [], 0
        while page := self.bank.list(limit=256, offset=offset):
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
    """What a fingerprint stands for, in words for people: its model, and its method with every setting."""
    settings = {name: value for name, value in method.describe().items() if name != "method"}
    words = ", ".join(f"{name}={value}" for name, value in settings.items())
    return {"model": lm.name, "method": f"{method.name}({words})"}


@torch.inference_mode()
def write_chunks(lm: LM, method: Method, chunks: Sequence[Chunk]) -> list[Memory]:
    """Memories of `chunks`, written in batches of texts of like length."""
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
