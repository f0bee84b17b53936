"""Session: a model, a method and a bank; write, generate, forget."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from remanence import answers, methods
from remanence.bank import Bank, Draft
from remanence.errors import InputError
from remanence.generation import Generation, Options, Stream, read_or_not
from remanence.lm.lm import LM
from remanence.lm.load import load
from remanence.methods.base import Method, Prompt
from remanence.methods.mplus.bank_pool import BankPool
from remanence.methods.mplus.method import MPlus
from remanence.snapshots import SessionSnapshot, copies, load_snapshot, moment, save_snapshot, since
from remanence.sources import BankSource, describe, write_chunks
from remanence.text.chunks import split
from remanence.text.decode import check_text
from remanence.text.embed import Embedder
from remanence.text.formats import Document
from remanence.text.retrieve import Kind, Retriever
from remanence.types import Chunk, ForgetReceipt, Piece, Receipt, Reply

Message = Mapping[str, str]
COMMIT_CHUNKS = 128


class Session:
    """Long-term memory for one model: what is written is recalled exactly, or the session refuses.

    `bank`: a folder, an open Bank (with its own namespace), or None for a bank in RAM that ends with the session.
    `method` may name its preset ("memory3:dense"). `embedder` None: the model's own, where it has one. Raises
    BankMismatch when the bank's memories are all of another model or method; with `adopt`, `migrate` may then
    make this session's.
    """

    def __init__(
        self,
        lm: LM | str,
        bank: Bank | str | Path | None = None,
        method: str | Method = "memory3",
        *,
        namespace: str = "default",
        retrieval: Kind = "hybrid",
        embedder: Embedder | None = None,
        seed: int = 0,
        adopt: bool = False,
    ) -> None:
        self.lm = load(lm) if isinstance(lm, str) else lm
        self.method = methods.load(method, self.lm) if isinstance(method, str) else method
        self._owns_bank = not isinstance(bank, Bank)
        self.bank = bank if isinstance(bank, Bank) else Bank.open(bank, namespace=namespace)
        self.embedder = embedder or self.lm.embedder
        self.retriever = Retriever(self.bank, self.embedder, kind=retrieval)
        self.seed = seed
        self._pool = self._followed()
        if self.method.writes_tensors and not adopt:
            self._check()

    def _followed(self) -> BankPool | None:
        if not self.method.reads_pool:
            return None
        assert isinstance(self.method, MPlus), "the only method that reads a pool"
        return BankPool(self.lm, self.method, self.bank, self.seed)

    def _check(self) -> None:
        try:
            self.bank.check(self.fingerprint, describe(self.lm, self.method))
        except BaseException:
            self.close()
            raise

    @property
    def fingerprint(self) -> str:
        """What this session's memories are valid for: model, tokenizer, dtype, method, config."""
        return self.method.fingerprint(self.lm)

    @property
    def read_ids(self) -> set[str]:
        """Texts that the latent pool has read, all of which any answer may repeat; none for other methods."""
        return self._pool.ids if self._pool else set()

    # -- writing ---------------------------------------------------------------------------------------------

    def write(
        self,
        text: str,
        source: str = "",
        *,
        expires: float | None = None,
        supersedes: str | None = None,
        metadata: Mapping[str, str] | None = None,
        warm: bool = True,
    ) -> Receipt:
        """Stores `text` in chunks that fit a memory. `warm` False: tensors are made when first recalled.

        `expires`: seconds since 1970. Raises InputError for a text without a word in it
        and for a time that has passed.
        """
        if expires is not None and expires <= self.bank.now():
            raise InputError(f"expires {expires} is in the past", "give seconds since 1970 that are still to come")
        document = Document(text, source, metadata or {})
        return self._write([document], expires=expires, supersedes=supersedes, warm=warm)

    def write_documents(
        self,
        documents: Iterable[Document],
        *,
        warm: bool = True,
        on_progress: Callable[[int], None] | None = None,
    ) -> Receipt:
        """Stores every document; `on_progress` is called with the number of chunks stored by each step."""
        return self._write(documents, warm=warm, on_progress=on_progress)

    def _write(
        self,
        documents: Iterable[Document],
        *,
        expires: float | None = None,
        supersedes: str | None = None,
        warm: bool = True,
        on_progress: Callable[[int], None] | None = None,
    ) -> Receipt:
        begun, num_documents, num_tokens, num_bytes = time.monotonic(), 0, 0, 0
        stored: list[tuple[str, bool]] = []
        for batch in self._batches(documents, expires, supersedes):
            drafts = [draft for document in batch for draft in document]
            added = self.bank.add(drafts)
            try:
                num_bytes += self._derive(added, warm)
            except InputError:  # no memory can be made of it: then it is not kept as if one could
                self.bank.forget([chunk_id for chunk_id, is_new in added if is_new])
                raise
            stored += added
            num_documents += len(batch)
            num_tokens += sum(draft.num_tokens for draft in drafts)
            if on_progress:
                on_progress(len(added))
        ids = tuple(chunk_id for chunk_id, _ in stored)
        skipped = tuple(chunk_id for chunk_id, is_new in stored if not is_new)
        merged = self._pool.num_merged(set(ids) - set(skipped)) if self._pool and warm else 0
        return Receipt(ids, skipped, num_documents, num_tokens, num_bytes, time.monotonic() - begun, merged)

    def _batches(
        self, documents: Iterable[Document], expires: float | None, supersedes: str | None
    ) -> Iterator[list[list[Draft]]]:
        """Whole documents, together until they have `COMMIT_CHUNKS` chunks: each batch is one commit."""
        batch: list[list[Draft]] = []
        for document in documents:
            batch.append(self._drafts(document, expires, supersedes))
            if sum(map(len, batch)) >= COMMIT_CHUNKS:
                yield batch
                batch = []
        if batch:
            yield batch

    def _drafts(self, document: Document, expires: float | None, supersedes: str | None) -> list[Draft]:
        text = check_text(document.text, document.source or "the text")
        pieces = split(text, self.lm.count_tokens, self.method.reference_tokens())
        return [
            Draft(
                text=piece.text,
                num_tokens=piece.num_tokens,
                source=document.source,
                start=piece.start,
                end=piece.end,
                expires=expires,
                supersedes=supersedes if i == 0 else None,
                metadata=dict(document.metadata),
            )
            for i, piece in enumerate(pieces)
        ]

    def _derive(self, stored: Sequence[tuple[str, bool]], warm: bool) -> int:
        """Search vectors and memories of those chunks that have none yet; returns the bytes that were added."""
        num_bytes, ids = 0, list(dict.fromkeys(chunk_id for chunk_id, _ in stored))
        if (
            (embedder := self.embedder)
            and not self._pool
            and (missing := self.bank.missing_vectors(embedder.name, ids))
        ):
            vectors = embedder.embed([chunk.text for chunk in self.bank.get(missing)])
            self.bank.put_vectors(embedder.name, missing, vectors)
            num_bytes += vectors.nbytes
        if warm and self.method.writes_tensors:
            num_bytes += self._write_memories(self.bank.missing_memories(self.fingerprint, ids))
        if warm and self._pool and any(is_new for _, is_new in stored):
            before = self._pool.num_bytes
            num_bytes += self._pool.now().pool.num_bytes - before
        return num_bytes

    def _write_memories(self, ids: Sequence[str]) -> int:
        if not ids:
            return 0
        memories = write_chunks(self.lm, self.method, self.bank.get(ids))
        self.bank.put_memories(self.fingerprint, ids, memories, description=describe(self.lm, self.method))
        return sum(memory.num_bytes for memory in memories)

    def migrate(self, on_progress: Callable[[int], None] | None = None) -> int:
        """Makes vectors and memories of every chunk for this session's model and method; returns how many.

        A chunk that is too long for this model's tokenizer is replaced by its pieces. What other models made of
        the other chunks stays until `bank.drop_memories`.
        """
        self._split_long_chunks()
        if self._pool:
            known = self._pool.ids
            return len({id for write in self._pool.now(on_progress=on_progress).writes for id in write.ids} - known)
        self.retriever.update()
        visible = [chunk.id for chunk in self.bank.list()] if self.method.writes_tensors else []
        missing = self.bank.missing_memories(self.fingerprint, visible)
        for start in range(0, len(missing), COMMIT_CHUNKS):
            batch = missing[start : start + COMMIT_CHUNKS]
            self._write_memories(batch)
            if on_progress:
                on_progress(len(batch))
        return len(missing)

    def _split_long_chunks(self) -> None:
        limit = self.method.reference_tokens()
        for chunk in self.bank.list():
            if self.lm.count_tokens(chunk.text) > limit:
                pieces = split(chunk.text, self.lm.count_tokens, limit)
                self.bank.add([self._piece_of(chunk, piece) for piece in pieces])
                self.forget(chunk.id)  # else forgetting the pieces would leave their text in the bank

    def _piece_of(self, chunk: Chunk, piece: Piece) -> Draft:
        return Draft(
            text=piece.text,
            num_tokens=piece.num_tokens,
            source=chunk.source,
            start=chunk.start + piece.start,
            end=chunk.start + piece.end,
            expires=chunk.expires,
            supersedes=chunk.supersedes,
            metadata=dict(chunk.metadata),
        )

    def recompute(self, chunks: Sequence[Chunk]) -> list[Any]:
        """Memories of `chunks` made anew from their text, for `bank.verify`."""
        return write_chunks(self.lm, self.method, chunks)

    def forget(self, *ids: str) -> ForgetReceipt:
        """Removes chunks, all that was made of them, and answers kept for `why`. UnknownChunk: nothing is removed."""
        receipt = self.bank.forget(list(ids))
        if self.bank.path is not None:
            answers.scrub(self.bank.path, receipt.ids)
        if self._pool:
            self._pool.cut(receipt.ids)
        return receipt

    # -- moments ---------------------------------------------------------------------------------------------

    def snapshot(self) -> SessionSnapshot:
        """What is remembered now, to go back to with `rollback`; a value that shares what does not change."""
        return moment(self.bank, self._pool)

    def rollback(self, earlier: SessionSnapshot) -> ForgetReceipt:
        """Forgets all that was written since `earlier`. UnknownChunk where a text of it was forgotten."""
        receipt = self.forget(*since(self.bank, self._pool, earlier))
        if self._pool and earlier.kept:
            self._pool.put(earlier.kept)
        return receipt

    def reset(self) -> ForgetReceipt:
        """Forgets everything in this namespace."""
        return self.forget(*(chunk.id for chunk in self.bank.list(include_superseded=True)))

    def save(self, folder: str | Path) -> None:
        """Writes texts and latent pool to a new or empty folder, for `load` in another session or elsewhere."""
        save_snapshot(self.bank, self._pool, Path(folder))

    def load(self, folder: str | Path) -> None:
        """Adds what `save` wrote. A pool of another model or a damaged one is refused, and nothing is added.

        Texts of a session without a pool, or into one, are read again where that is needed.
        """
        load_snapshot(self.bank, self._pool, Path(folder))

    def fork(self, bank: Bank | str | Path | None = None) -> Session:
        """Another session that remembers the same, in a bank of its own (None: in RAM); rows of the pool are shared."""
        known = {"namespace": self.bank.namespace, "retrieval": self.retriever.kind, "embedder": self.embedder}
        other = Session(self.lm, bank, self.method, seed=self.seed, **known)
        try:
            chunks = self.bank.list(include_superseded=True)
            other.bank.add(copies(chunks, linked=False))
            other.bank.add(copies(chunks, linked=True))
            if self._pool and other._pool:
                other._pool.put(self._pool.now())
        except BaseException:
            other.close()
            raise
        return other

    # -- generating ------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        without: Collection[str] = (),
        recall: bool = True,
    ) -> Reply:
        """The answer to a question or a conversation, and what it was recalled from.

        `without`: chunk ids that must not be recalled. `recall` False: the plain model. Raises ContextTooLong, and
        UnknownChunk for an id that the bank does not hold (any more).
        """
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        return self.generate_batch([prompt], stop=stop, without=without, recall=recall, **options)[0]

    def generate_batch(self, prompts: Sequence[str | Sequence[Message]], **options: Any) -> list[Reply]:
        """`generate` for several prompts of any lengths at once; every row recalls its own memories."""
        if not prompts:
            return []
        replies: dict[int, Reply] = {}
        for rows, generation in self._generations(prompts, options):
            for _ in generation.steps():
                pass
            replies |= zip(rows, generation.replies(), strict=True)
        return [replies[row] for row in range(len(prompts))]

    def stream(self, prompt: str | Sequence[Message], **options: Any) -> Stream:
        """`generate`, a piece at a time: iterate for text; `.reply` is there when the iteration ends."""
        ((_, generation),) = list(self._generations([prompt], options))
        return Stream(generation)

    def _generations(
        self, prompts: Sequence[str | Sequence[Message]], options: Mapping[str, Any]
    ) -> Iterator[tuple[list[int], Generation]]:
        """Rows that read memory, then rows that it is not about, each with their numbers."""
        begun = time.monotonic()
        seed = self.seed if options.get("seed") is None else options["seed"]
        chosen, asked = Options(**{**options, "seed": seed}), [self._prompt(prompt) for prompt in prompts]
        if chosen.without:
            self.bank.get(list(chosen.without))
        pool = self._pool.now if self._pool else None
        recall = BankSource(self.lm, self.method, self.bank, self.retriever, chosen.without, pool)
        reads = self.method.is_about(self.lm, recall, asked) if chosen.recall else [False] * len(asked)
        for is_read, rows in read_or_not(reads):
            part = [asked[row] for row in rows]
            yield rows, Generation(self.lm, self.method, recall if is_read else None, part, chosen, begun)

    def _prompt(self, prompt: str | Sequence[Message]) -> Prompt:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if not messages:
            raise InputError("the conversation is empty", "ask a question of at least one word")
        check_text(messages[-1]["content"], "the question")
        return Prompt(tuple(self.lm.render(messages)), messages[-1]["content"])

    def close(self) -> None:
        """Keeps the latent pool beside the bank; closes the bank, unless it was given open: then it is its owner's."""
        try:
            if self._pool:
                self._pool.save()
        finally:
            if self._owns_bank:
                self.bank.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
