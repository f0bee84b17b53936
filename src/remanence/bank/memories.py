"""What models made of the chunks: memories per fingerprint and vectors per embedder; a cache of the text."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from remanence.bank.checksums import digest
from remanence.bank.chunks import live_ids, require_live
from remanence.bank.context import BankContext
from remanence.bank.lance import ADDRESS, Table
from remanence.bank.rows import MEMORIES, any_of, vectors_schema
from remanence.bank.store import PinnedTable
from remanence.bank.tiers import LoadedRows, MemoryCache, TableRows
from remanence.errors import BankCorrupted, BankMismatch, InputError
from remanence.types import Memory

PAYLOAD_ROWS = 512
"""Memories per commit: bounds the RAM of a long write."""
HEAD = [*MEMORIES.names[:-1], ADDRESS]
"""All of a memory's row but its payload."""


def memories_table(fingerprint: str) -> str:
    return f"memories-{fingerprint[:16]}"


def vectors_table(embedder: str) -> str:
    return f"vectors-{hashlib.sha256(embedder.encode()).hexdigest()[:16]}"


def check_fingerprint(fingerprint: str) -> str:
    """`fingerprint` itself; InputError where it is no fingerprint."""
    if len(fingerprint) >= 16 and all(char in "0123456789abcdef" for char in fingerprint):
        return fingerprint
    raise InputError(
        f"fingerprint is {fingerprint[:80]!r}", "use at least 16 hex digits, as `method.fingerprint` gives"
    )


class Memories:
    """Memories of one namespace, the last used ones in RAM."""

    def __init__(self, context: BankContext, ram_bytes: int) -> None:
        self.context, self.store = context, context.store
        self.cache = MemoryCache(ram_bytes)
        self._version_keys: dict[str, tuple[int, ...]] = {}
        self._heads: dict[str, TableRows] = {}

    # --- fingerprints -------------------------------------------------------------------------

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Fingerprint -> description, for those that hold memories of this namespace."""
        entries = self.store.meta.of_kind("memories").values()
        counts = {entry["fingerprint"]: self.count(entry["fingerprint"]) for entry in entries}
        return {entry["fingerprint"]: entry["description"] for entry in entries if counts[entry["fingerprint"]]}

    def check(self, fingerprint: str, description: dict[str, Any]) -> None:
        """See `Bank.check`."""
        check_fingerprint(fingerprint)
        self.store.version(memories_table(fingerprint))  # also sees tables that another process made
        present = self.fingerprints()
        if present and fingerprint not in present:
            others = ", ".join(sorted(in_words(other) for other in present.values()))
            where = shlex.quote(self.store.name) if self.store.folder else "NEW_FOLDER"
            same = "with the same --model, --method and --namespace"
            raise BankMismatch(
                f"bank {self.store.name!r} holds memories of {others}, this session is {in_words(description)}",
                f"use the model and settings that wrote it, or `remanence bank migrate --bank {where}` {same} as now",
            )

    def register(self, fingerprint: str, description: dict[str, Any]) -> str:
        """Makes the table of `fingerprint` if it is missing; returns its name."""
        name = memories_table(check_fingerprint(fingerprint))
        if not self.store.exists(name):
            entry = {"kind": "memories", "fingerprint": fingerprint, "description": dict(description)}
            self.store.create(name, MEMORIES, entry)
        return name

    def count(self, fingerprint: str) -> int:
        return self.context.count(memories_table(fingerprint))

    # --- reading and writing ------------------------------------------------------------------

    def put(
        self, fingerprint: str, ids: Sequence[str], memories: Sequence[Memory], codec: str, description: dict[str, Any]
    ) -> None:
        """See `Bank.put_memories`."""
        from remanence.bank.codecs import check_codec, encode  # with torch, which a look into a bank does not need

        check_codec(codec)
        if len(ids) != len(memories):
            raise InputError(f"{len(ids)} ids and {len(memories)} memories", "give one memory for each id")
        with self.store.writing():
            require_live(self.context, ids)
            name = self.register(fingerprint, description)
            before = self.store.version_key(name)
            is_current = before == self._version_keys.get(name, before)
            for first in range(0, len(ids), PAYLOAD_ROWS):
                part = slice(first, first + PAYLOAD_ROWS)
                payloads = {id: encode(memory, codec) for id, memory in zip(ids[part], memories[part], strict=True)}
                self._write(name, fingerprint, payloads, codec)
                self.cache.discard(payloads)
            if not is_current:
                self.cache.clear(fingerprint)
            self._version_keys[name] = self.store.version_key(name)

    def _write(self, name: str, fingerprint: str, payloads: dict[str, bytes], codec: str) -> None:
        rows = [
            {
                "id": id,
                "namespace": self.context.namespace,
                "codec": codec,
                "checksum": payload_checksum(fingerprint, id, self.context.namespace, codec, payload),
                "payload": payload,
            }
            for id, payload in payloads.items()
        ]
        self.context.upsert(name, pa.Table.from_pylist(rows, schema=MEMORIES))

    def load(self, fingerprint: str, ids: Sequence[str]) -> list[Memory | None]:
        """See `Bank.load`."""
        name = memories_table(check_fingerprint(fingerprint))
        version_key = self.store.version_key(name)
        if version_key != self._version_keys.get(name):
            self.cache.clear(fingerprint)
            self._version_keys[name] = version_key
        unique = list(dict.fromkeys(ids))
        memories = {id: memory for id in unique if (memory := self.cache.get(fingerprint, id)) is not None}
        missing = [id for id in unique if id not in memories]
        if missing and version_key[-1]:
            for id, memory in self.read(fingerprint, missing).items():
                self.cache.put(fingerprint, id, memory)
                memories[id] = memory
        return [memories.get(id) for id in ids]

    def read(self, fingerprint: str, ids: Sequence[str]) -> dict[str, Memory]:
        """From disk, by id, past the RAM cache; those that are not there are left out."""
        name = memories_table(fingerprint)
        loaded = self._heads.setdefault(name, TableRows(self.store, name, HEAD[:-1])).current()
        rows = self.store.read_at((name,), lambda pinned: _read(pinned, loaded, list(dict.fromkeys(ids))), [])
        mine = [row for row in rows if row["namespace"] == self.context.namespace]
        return {row["id"]: decode_row(row, fingerprint) for row in mine}

    @property
    def row_bytes(self) -> int:
        """Of the rows in RAM, without the memories themselves."""
        return sum(each.num_bytes for each in self._heads.values())

    def clear_rows(self) -> None:
        """Drops what RAM holds of rows, but not the memories themselves."""
        self._heads.clear()

    def missing(self, fingerprint: str, ids: Sequence[str] | None) -> list[str]:
        """See `Bank.missing_memories`."""
        return _missing(self.context, memories_table(check_fingerprint(fingerprint)), ids)

    def drop(self, fingerprint: str) -> int:
        """Removes this namespace's memories of `fingerprint`; returns how many there were."""
        name = memories_table(check_fingerprint(fingerprint))
        with self.store.writing():
            count = self.count(fingerprint)
            self.cache.clear(fingerprint)
            if self.store.read(name, lambda table: table.count_rows(), -1) == count:
                self.store.drop(name)
            elif count:
                self.context.delete(name, self.context.where())
        return count

    def mean_bytes(self, fingerprint: str) -> float:
        """Bytes of a payload, over the first hundred of `fingerprint`; 0 where there is none."""
        where = self.context.where()

        async def read(table: Table) -> list[dict[str, Any]]:
            heads = await table.query().where(where).select(HEAD).limit(100).to_arrow()
            return await with_payloads(table, heads.to_pylist())

        sizes = [len(row["payload"]) for row in self.store.read(memories_table(fingerprint), read, [])]
        return sum(sizes) / len(sizes) if sizes else 0.0


async def _read(pinned: PinnedTable, loaded: LoadedRows | None, ids: list[str]) -> list[dict[str, Any]]:
    """Rows of `ids`; where their addresses are in RAM, of the version that is read, without a query."""
    if loaded is not None and loaded.version_key == pinned.version_key:
        return await with_payloads(pinned.table, loaded.read([*loaded.by_ids(ids).values()], HEAD))
    heads = await pinned.table.query().where(any_of("id", ids)).select(HEAD).to_arrow()
    return await with_payloads(pinned.table, heads.to_pylist())


async def with_payloads(table: Table, heads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whole rows of `MEMORIES`, from dicts of `HEAD`."""
    if not heads:
        return []
    payloads = await table.fetch_blobs("payload", [head[ADDRESS] for head in heads])
    return [head | {"payload": payload} for head, payload in zip(heads, payloads.to_pylist(), strict=True)]


def in_words(description: dict[str, Any]) -> str:
    """A fingerprint's description for people: its "model" with its "method", or all of it."""
    if "model" in description and "method" in description:
        return f"{description['model']} with {description['method']}"
    return ", ".join(f"{name}={value}" for name, value in sorted(description.items())) or "an undescribed model"


def payload_checksum(fingerprint: str, id: str, namespace: str, codec: str, payload: bytes) -> str:
    return digest(fingerprint, id, namespace, codec, payload)


def decode_row(row: dict[str, Any], fingerprint: str) -> Memory:
    """BankCorrupted where the checksum does not hold; then nothing of the payload is read."""
    from remanence.bank.codecs import decode  # with torch, which a look into a bank does not need

    check_row(row, fingerprint)
    return decode(row["payload"], row["codec"])


def check_row(row: dict[str, Any], fingerprint: str) -> None:
    """BankCorrupted where the checksum does not hold. Nothing is decoded."""
    expected = payload_checksum(fingerprint, row["id"], row["namespace"], row["codec"], row["payload"])
    if row["checksum"] != expected:
        raise BankCorrupted(
            f"the memory of chunk {row['id']!r} is not what was written: its checksum does not hold",
            "its text is kept apart: `remanence bank export`, then `bank import` into a new bank, writes it again",
        )


# --- vectors ----------------------------------------------------------------------------------


def put_vectors(context: BankContext, embedder: str, ids: Sequence[str], vector_NE: np.ndarray) -> None:
    """See `Bank.put_vectors`."""
    vector_NE = np.ascontiguousarray(vector_NE, dtype=np.float32)
    if vector_NE.ndim != 2 or len(vector_NE) != len(ids) or not vector_NE.size:
        raise InputError(f"{len(ids)} ids and vectors of shape {vector_NE.shape}", "give one vector for each id")
    if not np.isfinite(vector_NE).all() or not np.linalg.norm(vector_NE, axis=1).all():
        raise InputError(f"a vector of {embedder!r} is zero, NaN or infinite", "check the embedder")
    dim = vector_NE.shape[1]
    with context.store.writing():
        require_live(context, ids)
        name = vectors_table(embedder)
        check_dim(context, embedder, dim)
        if not context.store.exists(name):
            entry = {"kind": "vectors", "embedder": embedder, "dim": dim}
            context.store.create(name, vectors_schema(dim), entry)
        last = {id: row for row, id in enumerate(ids)}  # of an id that is given twice, the later vector
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vector_NE[list(last.values())].ravel()), dim)
        columns = [pa.array(list(last)), pa.array([context.namespace] * len(last)), vectors]
        context.upsert(name, pa.Table.from_arrays(columns, schema=vectors_schema(dim)))


def check_dim(context: BankContext, embedder: str, dim: int) -> None:
    """InputError where this bank's vectors of `embedder` are not `dim` wide."""
    entry = context.store.meta.tables.get(vectors_table(embedder))
    if entry and entry["dim"] != dim:
        problem = f"a vector of {embedder!r} has {dim} numbers, this bank's have {entry['dim']}"
        raise InputError(problem, "give embedders of different width different names")


def num_vectors(context: BankContext) -> dict[str, int]:
    """Embedder -> number of its vectors in this namespace, of those that have any."""
    entries = context.store.meta.of_kind("vectors")
    counts = {entry["embedder"]: context.count(name) for name, entry in entries.items()}
    return {embedder: count for embedder, count in counts.items() if count}


def missing_vectors(context: BankContext, embedder: str, ids: Sequence[str] | None) -> list[str]:
    """See `Bank.missing_vectors`."""
    return _missing(context, vectors_table(embedder), ids)


def _missing(context: BankContext, name: str, ids: Sequence[str] | None) -> list[str]:
    """Which of `ids` (None: of all live chunks, oldest first) table `name` has no row of."""
    if ids is None:
        ids = live_ids(context)
        present = context.ids_in(name) if context.count(name) else set()
    else:
        present = context.ids_in(name, ids)
    return [id for id in dict.fromkeys(ids) if id not in present]
