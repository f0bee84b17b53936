"""How texts enter a session's bank: split into chunks, commit, derive search vectors, memories and state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remanence import arguments
from remanence.bank.new_chunk import NewChunk
from remanence.errors import InputError
from remanence.sources import describe, write_chunks
from remanence.text.chunks import split
from remanence.text.decode import check_text
from remanence.text.formats import Document
from remanence.types import Chunk, ForgetReceipt, Piece, Receipt

if TYPE_CHECKING:
    from remanence.bank import Bank
    from remanence.lm.lm import LM
    from remanence.methods.base import Method, MethodState
    from remanence.text.embed import Embedder

COMMIT_CHUNKS = 128
"""A commit takes whole documents until it has so many chunks."""
Progress = Callable[[int], None]
"""Called with the number of chunks of each step."""


@dataclass(frozen=True)
class Ingest:
    """Writes into `bank` for one model and method. `state`: what the session keeps for the method, if anything."""

    lm: LM
    method: Method
    bank: Bank
    embedder: Embedder | None
    state: MethodState | None

    def write(
        self,
        documents: Iterable[Document],
        *,
        expires: float | None = None,
        supersedes: str | None = None,
        warm: bool = True,
        on_progress: Progress | None = None,
    ) -> Receipt:
        """Stores every document. `supersedes`: for the first chunk of each. See `Session.write`."""
        begun, num_documents, num_tokens, num_bytes = time.monotonic(), 0, 0, 0
        stored: list[tuple[str, bool]] = []
        for batch in self._batches(documents, expires, supersedes):
            drafts = [draft for document in batch for draft in document]
            added = self.bank.add(drafts)
            try:
                num_bytes += self._derive(added, warm)
            except InputError:  # no memory can be made of it: the text must not stay as if there were one
                self.bank.forget([chunk_id for chunk_id, is_new in added if is_new])
                raise
            stored += added
            num_documents += len(batch)
            num_tokens += sum(draft.num_tokens for draft in drafts)
            if on_progress:
                on_progress(len(added))
        ids = tuple(chunk_id for chunk_id, _ in stored)
        skipped = tuple(chunk_id for chunk_id, is_new in stored if not is_new)
        merged = self.state.num_merged(set(ids) - set(skipped)) if self.state is not None and warm else 0
        return Receipt(ids, skipped, num_documents, num_tokens, num_bytes, time.monotonic() - begun, merged)

    def _batches(
        self, documents: Iterable[Document], expires: float | None, supersedes: str | None
    ) -> Iterator[list[list[NewChunk]]]:
        batch: list[list[NewChunk]] = []
        for document in documents:
            batch.append(self._chunks_of(document, expires, supersedes))
            if sum(map(len, batch)) >= COMMIT_CHUNKS:
                yield batch
                batch = []
        if batch:
            yield batch

    def _chunks_of(self, document: Document, expires: float | None, supersedes: str | None) -> list[NewChunk]:
        text = check_text(document.text, document.source or "the text")
        return [
            NewChunk(
                text=piece.text,
                num_tokens=piece.num_tokens,
                source=document.source,
                start=piece.start,
                end=piece.end,
                expires=expires,
                supersedes=supersedes if i == 0 else None,
                metadata=dict(document.metadata),
            )
            for i, piece in enumerate(self._split(text))
        ]

    def _split(self, text: str) -> list[Piece]:
        return split(text, self.lm.count_tokens, self.method.reference_tokens())

    def _derive(self, stored: Sequence[tuple[str, bool]], warm: bool) -> int:
        """Makes the search vectors, memories and state that are missing; returns the bytes that were added."""
        num_bytes, ids = 0, list(dict.fromkeys(chunk_id for chunk_id, _ in stored))
        if self.embedder and self.method.searches:
            num_bytes += self._write_vectors(self.embedder, ids)
        if warm and self.method.writes_tensors:
            num_bytes += self._write_memories(self.bank.missing_memories(self.method.fingerprint(self.lm), ids))
        if warm and self.state is not None and any(is_new for _, is_new in stored):
            before = self.state.num_bytes
            self.state.update()
            num_bytes += self.state.num_bytes - before
        return num_bytes

    def _write_vectors(self, embedder: Embedder, ids: Sequence[str]) -> int:
        missing = self.bank.missing_vectors(embedder.name, ids)
        if not missing:
            return 0
        vectors = embedder.embed([chunk.text for chunk in self.bank.get(missing)])
        self.bank.put_vectors(embedder.name, missing, vectors)
        return vectors.nbytes

    def _write_memories(self, ids: Sequence[str]) -> int:
        if not ids:
            return 0
        memories = write_chunks(self.lm, self.method, self.bank.get(ids))
        fingerprint = self.method.fingerprint(self.lm)
        self.bank.put_memories(fingerprint, ids, memories, description=describe(self.lm, self.method))
        return sum(memory.num_bytes for memory in memories)

    def migrate(
        self,
        update_index: Callable[[], object],
        forget: Callable[[str], ForgetReceipt],
        on_progress: Progress | None = None,
    ) -> int:
        """See `Session.migrate`. `update_index` makes the missing search vectors, `forget` removes a chunk."""
        self._split_long_chunks(forget)
        num_chunks = 0
        if self.method.searches:
            update_index()
        if self.state is not None:
            before = self.state.ids
            self.state.update(on_progress=on_progress)
            num_chunks += len(self.state.ids - before)
        if self.method.writes_tensors:
            num_chunks += self._write_missing(on_progress)
        return num_chunks

    def _write_missing(self, on_progress: Progress | None) -> int:
        visible = [chunk.id for chunk in self.bank.list()]
        missing = self.bank.missing_memories(self.method.fingerprint(self.lm), visible)
        for start in range(0, len(missing), COMMIT_CHUNKS):
            batch = missing[start : start + COMMIT_CHUNKS]
            self._write_memories(batch)
            if on_progress:
                on_progress(len(batch))
        return len(missing)

    def _split_long_chunks(self, forget: Callable[[str], ForgetReceipt]) -> None:
        limit = self.method.reference_tokens()
        for chunk in self.bank.list():
            if self.lm.count_tokens(chunk.text) > limit:
                self.bank.add([_piece_of(chunk, piece) for piece in self._split(chunk.text)])
                forget(chunk.id)  # else forgetting the pieces would leave their text in the bank


def _piece_of(chunk: Chunk, piece: Piece) -> NewChunk:
    return NewChunk(
        text=piece.text,
        num_tokens=piece.num_tokens,
        source=chunk.source,
        start=chunk.start + piece.start,
        end=chunk.start + piece.end,
        expires=chunk.expires,
        supersedes=chunk.supersedes,
        metadata=dict(chunk.metadata),
    )


def checked_documents(documents: object) -> Iterator[Document]:
    """Documents of any objects that have `text` and `source`. Raises InputError for the first that cannot be used."""
    items = arguments.each(documents)
    if items is None:
        hint = "give a list of documents; for one text there is `Session.write`"
        raise InputError(f"documents are {arguments.shown(documents)}", hint)
    return (_document(raw, f"document {number}") for number, raw in enumerate(items, 1))


def _document(raw: Any, where: str) -> Document:
    if not (hasattr(raw, "text") and hasattr(raw, "source")):
        raise InputError(f"{where} is {arguments.shown(raw)}", "give a Document(text, source)")
    text = arguments.string(f"the text of {where}", raw.text)
    return Document(text, source_name(raw.source), checked_metadata(getattr(raw, "metadata", None)))


def source_name(source: object) -> str:
    """The name of a document: a str or a path; None: ""."""
    if source is None or source == "":
        return ""
    return str.__str__(source) if isinstance(source, str) else arguments.name_or_path("source", source)


def checked_metadata(metadata: object) -> Mapping[str, str]:
    """A mapping; None: an empty one. The bank checks its names and values."""
    if metadata is None:
        return {}
    if isinstance(metadata, Mapping):
        return metadata
    raise InputError(f"metadata is {arguments.shown(metadata)}", 'give a dict of strings, such as {"page": "4"}')
