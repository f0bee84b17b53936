"""Session: a model, a method and a bank; write, generate, forget, save."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from remanence import arguments, generation, methods, snapshots
from remanence.bank import Bank
from remanence.errors import InputError
from remanence.generation import GenerateOptions, Generation, Options, Stream
from remanence.ingest import Ingest, checked_documents, checked_metadata, source_name
from remanence.lm.lm import LM
from remanence.lm.load import load
from remanence.methods.base import Method
from remanence.snapshots import SessionSnapshot
from remanence.sources import BankSource, describe, write_chunks
from remanence.text.embed import Embedder
from remanence.text.formats import Document
from remanence.text.retrieve import Kind, Retriever
from remanence.types import Chunk, ForgetReceipt, Receipt, Reply

if TYPE_CHECKING:
    from datetime import date, timedelta

Folder = str | os.PathLike[str]
Prompts = str | Iterable[Any]
"""A question, or messages: see `remanence.conversation.parse`."""


class Session:
    """Long-term memory for one model: what is written is recalled exactly, or the session refuses.

    `lm`: a model, or a name for `remanence.load`. `bank`: a folder, an open Bank (with its own namespace), or None
    for a bank in RAM that ends with the session. `method` may name its preset ("memory3:dense"). `embedder` None: the
    model's own, where it has one. `adopt`: accept a bank whose memories are all of another model or method, so that
    `migrate` can make this session's. Raises InputError for arguments that cannot be used, and BankMismatch for such
    a bank without `adopt`.
    """

    def __init__(
        self,
        lm: LM | Folder,
        bank: Bank | Folder | None = None,
        method: str | Method = "memory3",
        *,
        namespace: str = "default",
        retrieval: Kind = "hybrid",
        embedder: Embedder | None = None,
        seed: int = 0,
        adopt: bool = False,
    ) -> None:
        self.seed = arguments.seed("seed", seed)
        adopt = arguments.flag("adopt", adopt)
        if embedder is not None and not callable(getattr(embedder, "embed", None)):
            raise InputError(
                f"embedder is {arguments.shown(embedder)}", "give an object with name, dim and embed(texts)"
            )
        folder = bank if bank is None or isinstance(bank, Bank) else arguments.folder("bank", bank)
        self.lm = lm if isinstance(lm, LM) else _load(lm)
        self.method = method if isinstance(method, Method) else methods.load(method, self.lm)
        self._owns_bank = not isinstance(folder, Bank)
        self.bank = folder if isinstance(folder, Bank) else Bank.open(folder, arguments.string("namespace", namespace))
        self.embedder = embedder or self.lm.embedder
        try:
            self.retriever = Retriever(self.bank, self.embedder, kind=retrieval)
            self._state = self.method.open_state(self.lm, self.bank, self.seed)
            self._ingest = Ingest(self.lm, self.method, self.bank, self.embedder, self._state)
            if self.method.writes_tensors and not adopt:
                self.bank.check(self.fingerprint, describe(self.lm, self.method))
        except BaseException:
            if self._owns_bank:
                self.bank.close()
            raise

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that this session's memories are valid for: model, tokenizer, dtype, method, config."""
        return self.method.fingerprint(self.lm)

    @property
    def read_ids(self) -> set[str]:
        """Ids of the chunks that the method's state has read: any answer may repeat them. Empty without a state."""
        return set() if self._state is None else self._state.ids

    # -- writing ---------------------------------------------------------------------------------------------

    def write(
        self,
        text: str,
        source: Folder | None = "",
        *,
        expires: float | date | timedelta | None = None,
        supersedes: str | None = None,
        metadata: Mapping[str, str] | None = None,
        warm: bool = True,
    ) -> Receipt:
        """Stores `text` in chunks that fit a memory. `warm` False: tensors are made when first recalled.

        `expires`: seconds since 1970 (UTC), a datetime (a naive one is local time), a date, or a timedelta from now.
        `supersedes`: the id of a chunk that this text replaces. Raises InputError for a text without a word in it and
        for a time that has passed, and UnknownChunk for an id that the bank does not hold.
        """
        hint = "give the text itself; `Session.write_documents` takes documents that were read from files"
        document = Document(arguments.string("text", text, hint), source_name(source), checked_metadata(metadata))
        return self._ingest.write(
            [document],
            expires=arguments.expiry("expires", expires, self.bank.now()),
            supersedes=None if supersedes is None else arguments.string("supersedes", supersedes, "give a chunk's id"),
            warm=arguments.flag("warm", warm),
        )

    def write_documents(
        self,
        documents: Iterable[Document],
        *,
        warm: bool = True,
        on_progress: Callable[[int], None] | None = None,
    ) -> Receipt:
        """Stores every document; `on_progress` is called with the number of chunks of each commit.

        Documents are objects with `text`, `source` and `metadata`, as `remanence.text.documents.read_documents`
        yields them. Raises InputError for anything else; documents that were committed before it stay.
        """
        checked = checked_documents(documents)
        return self._ingest.write(checked, warm=arguments.flag("warm", warm), on_progress=on_progress)

    def migrate(self, on_progress: Callable[[int], None] | None = None) -> int:
        """Makes vectors, memories and state of every chunk for this session's model and method.

        Returns how many chunks were missing. A chunk that is too long for this model's tokenizer is replaced by its
        pieces. What other models made of the other chunks stays until `Bank.drop_memories`.
        """
        return self._ingest.migrate(self.retriever.update, self.forget, on_progress)

    def recompute(self, chunks: Sequence[Chunk]) -> list[Any]:
        """Memories of `chunks` made again from their text, for `Bank.verify`."""
        return write_chunks(self.lm, self.method, chunks)

    def forget(self, *ids: str) -> ForgetReceipt:
        """`Bank.forget`, and the method's state forgets them too. UnknownChunk: nothing is removed."""
        hint = "give ids one by one: `session.forget(*receipt.ids)`"
        receipt = self.bank.forget([arguments.string("an id", id, hint) for id in ids])
        if self._state is not None:
            self._state.remove(receipt.ids)
        return receipt

    # -- snapshots -------------------------------------------------------------------------------------------

    def snapshot(self) -> SessionSnapshot:
        """What the session remembers now, for `rollback`: a value that shares what does not change."""
        return snapshots.take_snapshot(self.bank, self._state)

    def rollback(self, earlier: SessionSnapshot) -> ForgetReceipt:
        """Forgets everything that was written since `earlier`.

        Raises UnknownChunk where a chunk of it was forgotten, and BankMismatch for a snapshot of another model.
        """
        receipt = self.forget(*snapshots.ids_since(self.bank, self._state, earlier))
        if self._state is not None:
            self._state.restore(earlier.state)
        return receipt

    def reset(self) -> ForgetReceipt:
        """Forgets everything in this namespace."""
        return self.forget(*(chunk.id for chunk in self.bank.list(include_superseded=True)))

    def save(self, folder: Folder) -> None:
        """Writes the chunks and the method's state to a new or empty folder, for `load` in this or another session."""
        snapshots.save_snapshot(self.bank, self._state, arguments.folder("folder", folder))

    def load(self, folder: Folder) -> None:
        """Adds what `save` wrote. The state is used where the bank was empty; else the chunks are read again.

        Raises InputError for another folder, BankMismatch for a state of another model, BankCorrupted for a damaged
        one: then nothing is added.
        """
        snapshots.load_snapshot(self.bank, self._state, arguments.folder("folder", folder))

    def fork(self, bank: Bank | Folder | None = None) -> Session:
        """Another session that remembers the same, in a bank of its own (None: in RAM)."""
        options: dict[str, Any] = {"namespace": self.bank.namespace, "retrieval": self.retriever.kind}
        other = Session(self.lm, bank, self.method, seed=self.seed, embedder=self.embedder, **options)
        try:
            chunks = self.bank.list(include_superseded=True)
            other.bank.add(snapshots.copies(chunks, linked=False))
            other.bank.add(snapshots.copies(chunks, linked=True))
            if self._state is not None and other._state is not None:
                other._state.restore(self._state.snapshot())
        except BaseException:
            other.close()
            raise
        return other

    # -- generating ------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompts,
        *,
        max_tokens: int | None = 64,
        temperature: float | None = 0.0,
        top_p: float | None = 1.0,
        seed: int | None = None,
        stop: str | Iterable[str] | None = (),
        without: str | Iterable[str] | None = (),
        recall: bool = True,
        attribution: bool = True,
    ) -> Reply:
        """The answer to a question or a conversation, and what it was recalled from.

        `prompt`: a str, or messages in the shapes that OpenAI clients send. `temperature` 0: the likeliest tokens.
        `seed` None: the session's. `without`: ids of chunks that must not be recalled. `recall` False: the plain
        model. `attribution` False: attention is not measured, which saves one forward pass; `Recall.share` is None
        then, and methods that know only from attention what they read (M+) name no chunk. Raises InputError,
        ContextTooLong, and UnknownChunk for an id in `without` that the bank does not hold.
        """
        return self.generate_batch(
            [prompt],
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
            without=without,
            recall=recall,
            attribution=attribution,
        )[0]

    def generate_batch(self, prompts: Iterable[Prompts], **options: Unpack[GenerateOptions]) -> list[Reply]:
        """`generate` for several prompts of any lengths at once; each recalls its own memories."""
        replies: dict[int, Reply] = {}
        for places, batch in self._generations(prompts, options):
            for _ in batch.steps():
                pass
            replies |= zip(places, batch.replies(), strict=True)
        return [replies[place] for place in range(len(replies))]

    def stream(self, prompt: Prompts, **options: Unpack[GenerateOptions]) -> Stream:
        """`generate`, a piece at a time: iterate for text; `.reply` is there when the iteration ends."""
        ((_, batch),) = list(self._generations([prompt], options))
        return Stream(batch)

    def _generations(self, prompts: object, options: GenerateOptions) -> Iterator[tuple[list[int], Generation]]:
        begun = time.monotonic()
        checked = Options.of(options, self.seed)
        parsed = generation.parse_prompts(self.lm, prompts)
        source = BankSource(self.lm, self.method, self.bank, self.retriever, checked.without, self._state)
        return generation.generations(self.method, source, parsed, checked, begun)

    def close(self) -> None:
        """Keeps the method's state beside the bank; closes the bank, unless it was given open."""
        try:
            if self._state is not None:
                self._state.close()
        finally:
            if self._owns_bank:
                self.bank.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _load(lm: object) -> LM:
    if not isinstance(lm, str | os.PathLike):
        hint = "give a name, a folder, or an LM: `remanence.from_transformers(model, tokenizer)` makes one"
        raise InputError(f"lm is {arguments.shown(lm)}", hint)
    return load(arguments.name_or_path("lm", lm))
