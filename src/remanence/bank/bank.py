"""`Bank`: text that outlives every process, and beside it what models made of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from remanence import arguments
from remanence.bank import chunks, maintenance, memories, pool_files, transfer, verification
from remanence.bank.answers import Answer, Answers
from remanence.bank.context import BankContext
from remanence.bank.maintenance import BankParts
from remanence.bank.memories import Memories
from remanence.bank.meta import TextIndex
from remanence.bank.new_chunk import NewChunk, check_namespace, chunk_id
from remanence.bank.reports import BankStats, CompactReceipt, VerifyReport
from remanence.bank.rows import READ
from remanence.bank.search import Search
from remanence.bank.store import CHUNKS_TABLE, Store
from remanence.bank.tiers import TableRows
from remanence.bank.usage import RecallCounts
from remanence.bank.verification import Recompute
from remanence.types import Chunk, ForgetReceipt, Memory

Ids = list[str]
Chunks = list[Chunk]
Added = list[tuple[str, bool]]
Scored = list[tuple[str, float]]
Loaded = list[Memory | None]
Flags = list[bool]
RAM_BYTES = 256 << 20
LOCK_SECONDS = 30.0


class Bank:
    """Open with `Bank.open`. Every method sees one namespace only, and what other processes wrote.

    A chunk is *live* until it expires, and *visible* (found by searches, counted by `len`) while in
    addition no live chunk supersedes it. Failures of the disk or of Lance are `BankError`s.
    """

    def __init__(
        self,
        folder: Path | None,
        namespace: str,
        ram_bytes: int,
        lock_seconds: float,
        text_index: TextIndex | None,
        clock: Callable[[], float],
    ) -> None:
        self.path, self.namespace = folder, check_namespace(namespace)
        self._store = Store(folder, lock_seconds, text_index)
        chunk_rows = TableRows(self._store, CHUNKS_TABLE, READ)
        self._context = context = BankContext(self._store, namespace, clock, chunk_rows)
        self._memories, self._search = Memories(context, ram_bytes), Search(context)
        self._counts, self._answers = RecallCounts(context), Answers(folder)
        self._parts = BankParts(context, self._memories, self._search, self._counts, self._answers)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None,
        namespace: str = "default",
        ram_bytes: int = RAM_BYTES,
        *,
        lock_seconds: float = LOCK_SECONDS,
        text_index: TextIndex | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Bank:
        """The bank in folder `path`, made if it is missing; None: in RAM, gone on close.

        `ram_bytes` bounds the memories kept in RAM (`tiers.py` says what else is), `lock_seconds` the wait for
        another writer (BankBusy), `text_index` is used when the bank is made. InputError: a folder with other files.
        """
        folder = None if path is None else arguments.folder("bank", path)
        namespace = arguments.string("namespace", namespace)
        return cls(folder, namespace, ram_bytes, lock_seconds, text_index, clock)

    # --- chunks -------------------------------------------------------------------------------

    def add(self, new_chunks: Sequence[NewChunk]) -> Added:
        """(id, is_new) for each chunk; all of them on disk when this returns, or none.

        A text that is live already is stored once: its row stays, it expires at the later of both
        times, and a `supersedes` of the new chunk takes effect. UnknownChunk: nothing to supersede.
        """
        added = chunks.add(self._context, new_chunks)
        self._counts.flush()
        return added

    def has(self, contents: Sequence[str]) -> Flags:
        ids = [chunk_id(self.namespace, text) for text in contents]
        live = self._context.live(set(ids))
        return [id in live for id in ids]

    def get(self, ids: Sequence[str]) -> Chunks:
        """Live chunks, superseded ones too, in the order of `ids`; UnknownChunk names the first that is not."""
        version, by_id = self._search.visibility().version, self._search.remembered(ids)
        missing = [id for id in ids if id not in by_id]
        if missing:
            read = {id: row.chunk for id, row in chunks.require_live(self._context, missing).items()}
            self._search.remember(version, read.values())
            by_id |= read
        return [by_id[id] for id in ids]

    def texts(self, ids: Sequence[str]) -> dict[str, str]:
        """Id -> text of those of `ids` that are live; quick for what `search_text` has just found."""
        texts = self._search.texts(ids)
        missing = [id for id in ids if id not in texts]
        live = self._context.live(missing) if missing else {}
        return texts | {id: row.chunk.text for id, row in live.items()}

    def list(
        self, limit: int | None = None, offset: int = 0, source: str | None = None, *, include_superseded: bool = False
    ) -> Chunks:
        """Visible chunks, oldest first; `source`: of this document only."""
        return chunks.list_chunks(self._context, limit, offset, source, include_superseded)

    def __len__(self) -> int:
        return self._context.count(CHUNKS_TABLE, self._context.is_visible())

    def search_text(self, query: str, limit: int = 20) -> Scored:
        """(id, BM25 score) of visible chunks that share a word with `query`, best first; any text is a query."""
        return self._search.text(query, limit)

    def search_vector(self, vector_E: np.ndarray, embedder: str, limit: int = 20) -> Scored:
        """(id, cosine) of visible chunks, best first; [] where `embedder` has no vectors here."""
        return self._search.vector(vector_E, embedder, limit)

    # --- what models made of them -------------------------------------------------------------

    def put_vectors(self, embedder: str, ids: Sequence[str], vector_NE: np.ndarray) -> None:
        """Stores one float32 vector per chunk, in place of an older one. UnknownChunk: nothing is stored."""
        if len(ids):
            memories.put_vectors(self._context, embedder, ids, vector_NE)

    def missing_vectors(self, embedder: str, ids: Sequence[str] | None = None) -> Ids:
        """Which of `ids` (None: of all live chunks, oldest first) have no vector of `embedder`."""
        return memories.missing_vectors(self._context, embedder, ids)

    def embedders(self) -> Ids:
        """Names of the embedders that have vectors of this namespace."""
        return sorted(memories.num_vectors(self._context))

    def check(self, fingerprint: str, description: Mapping[str, Any]) -> None:
        """BankMismatch where this namespace holds memories, but none of `fingerprint`.

        `description` says what makes the fingerprint ("model", "method", ...); strings and numbers.
        """
        self._memories.check(fingerprint, dict(description))

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Fingerprint -> description, of the memories that this namespace holds."""
        return self._memories.fingerprints()

    def put_memories(
        self,
        fingerprint: str,
        ids: Sequence[str],
        memories: Sequence[Memory],
        codec: str = "bf16",
        description: Mapping[str, Any] | None = None,
    ) -> None:
        """Stores one memory per chunk, in place of an older one. UnknownChunk: nothing is stored."""
        if len(ids) or len(memories):
            self._memories.put(fingerprint, ids, memories, codec, dict(description or {}))

    def load(self, fingerprint: str, ids: Sequence[str]) -> Loaded:
        """Memories in the order of `ids`; None where there is none (yet). BankCorrupted, never a changed one."""
        return self._memories.load(fingerprint, ids)

    def missing_memories(self, fingerprint: str, ids: Sequence[str] | None = None) -> Ids:
        """Which of `ids` (None: of all live chunks, oldest first) have no memory of `fingerprint`."""
        return self._memories.missing(fingerprint, ids)

    def drop_memories(self, fingerprint: str) -> int:
        """Removes this namespace's memories of `fingerprint`; the texts stay. Returns how many."""
        return self._memories.drop(fingerprint)

    def note_recalled(self, ids: Sequence[str]) -> None:
        """Counts one recall of each; kept in RAM until the next change or `close`."""
        self._counts.note(ids)

    def usage(self) -> dict[str, tuple[int, float]]:
        """Chunk id -> (number of recalls, time of the last)."""
        return self._counts.counts()

    def now(self) -> float:
        """Seconds since 1970 by the clock that decides what has expired."""
        return self._context.clock()

    # --- answers ------------------------------------------------------------------------------

    def note_answer(self, answer: Answer) -> bool:
        """Keeps an answer for `answers`, and with it `answers.KEEP` of this namespace.

        False, and not kept: a memory that it recalled is not live any more, or the bank is in RAM. OSError, BankBusy.
        """
        return self._answers.add(answer, lambda ids: self._context.live(ids).keys())

    def answers(self, limit: int = 1) -> Sequence[Answer]:
        """Answers that were noted, the newest first. One that recalled what is not live any more is removed."""
        return maintenance.live_answers(self._parts, limit)

    # --- forgetting and maintenance -----------------------------------------------------------

    def forget(self, ids: Sequence[str]) -> ForgetReceipt:
        """Removes chunks and all that was made of them; UnknownChunk: nothing is removed.

        That is memories, vectors, latent pools, counts, and answers that recalled one of them or that hold a text,
        source or metadata value that no other chunk has. What only a forgotten chunk superseded is visible again.
        The receipt's `exact` was read back. Bytes leave the disk with `compact`.
        """
        return maintenance.forget(self._parts, ids)

    def expire(self) -> int:
        """Forgets what has expired (it is never returned anyway); returns how many chunks."""
        return maintenance.expire(self._parts)

    def compact(self) -> CompactReceipt:
        """Purges what has expired in this namespace and rewrites files, until no byte of what was removed is on disk.

        The receipt's `bytes_gone` was checked (see `compaction.leftovers`), whoever removed it, in whichever
        namespace and process: every file of a table that had rows removed was written after that, no row of it can
        be read, and the bytes of the other files do not hold it.
        """
        return maintenance.compact(self._parts)

    def index(self) -> None:
        """Brings text and vector indexes up to date; done by itself as a bank grows."""
        with self._store.writing():
            for name in [*self._store.meta.tables]:
                if self._store.exists(name):
                    self._store.refresh(name)

    def verify(
        self,
        recompute: Recompute | None = None,
        sample: int = 8,
        *,
        fingerprint: str | None = None,
        tolerance: float = 0.02,
        decode: bool = True,
    ) -> VerifyReport:
        """Checks every file, row and payload; `recompute` makes a sample of memories from their text again.

        `decode` False: payloads are compared with their checksums and not decoded, which needs no torch.

        `fingerprint` says whose, where the bank holds those of several. A memory may differ by
        `tolerance` of its largest value (bfloat16 and int8 round).
        """
        return verification.verify(self._parts, recompute, sample, fingerprint, tolerance, decode)

    @property
    def is_open(self) -> bool:
        return self._store.is_open

    def keep_pool(self, fingerprint: str, ids: Collection[str], write: Callable[[Path], None]) -> bool:
        """Calls `write` with `pool_file`, unless one of `ids` is not live any more: no file holds a forgotten text."""
        return maintenance.keep_pool(self._parts, fingerprint, ids, write)

    def pool_file(self, fingerprint: str) -> Path | None:
        """Where the latent pool of this namespace for `fingerprint` is; None in RAM. Removed when a text is."""
        return pool_files.pool_file(self.path, self.namespace, fingerprint)

    def stats(self) -> BankStats:
        return maintenance.stats(self._parts)

    def export(self, path: str | os.PathLike[str]) -> int:
        """Writes live chunks as JSON lines (see FORMAT.md), whole or not at all; returns how many."""
        return transfer.export(self._context, Path(path))

    def import_(self, path: str | os.PathLike[str]) -> Added:
        """Adds the chunks of an export; InputError names the first damaged line, and then nothing is added."""
        return transfer.import_(self._context, Path(path))

    def close(self) -> None:
        """Writes pending counts. The bank cannot be used afterwards; a bank in RAM is gone."""
        if self._store.is_open:
            self._counts.flush()
            self._store.close()

    def __enter__(self) -> Bank:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
