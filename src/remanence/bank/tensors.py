"""What models made of the chunks: memories per fingerprint and vectors per embedder; a cache of the text."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from remanence.bank.cache import MemoryCache
from remanence.bank.codec import check_codec, decode, encode
from remanence.bank.draft import digest
from remanence.bank.resident import ADDRESS, Resident, Rows
from remanence.bank.rows import MEMORIES, any_of, vectors_schema
from remanence.bank.store import Pin, Table
from remanence.bank.texts import Scope, known
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
    if len(fingerprint) >= 16 and all(char in "0123456789abcdef" for char in fingerprint):
        return fingerprint
    raise InputError(
        f"fingerprint is {fingerprint[:80]!r}", "use at least 16 hex digits, as `method.fingerprint` gives"
    )


class Memories:
    """Memories of one namespace, the last used ones in RAM."""

    def __init__(self, scope: Scope, ram_bytes: int) -> None:
        self.scope, self.store = scope, scope.store
        self.cache = MemoryCache(ram_bytes)
        self._editions: dict[str, tuple[int, ...]] = {}
        self._heads: dict[str, Resident] = {}

    # --- fingerprints -------------------------------------------------------------------------

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Fingerprint -> description, for those that hold memories of this namespace."""
        entries = self.store.meta.of_kind("memories")
        counts = {name: self.count(entry["fingerprint"]) for name, entry in entries.items()}
        return {entry["fingerprint"]: entry["description"] for name, entry in entries.items() if counts[name]}

    def check(self, fingerprint: str, description: dict[str, Any]) -> None:
        """See `Bank.check`."""
        check_fingerprint(fingerprint)
        self.store.version(memories_table(fingerprint))  # also sees tables that another process made
        held = self.fingerprints()
        if held and fingerprint not in held:
            others = ", ".join(sorted(describe(other) for other in held.values()))
            where = shlex.quote(self.store.name) if self.store.folder else "NEW_FOLDER"
            same = "with the same --model, --method and --namespace"
            raise BankMismatch(
                f"bank {self.store.name!r} holds memories of {others}, this session is {describe(description)}",
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
        return self.store.read(memories_table(fingerprint), lambda table: table.count_rows(self.scope.where()), 0)

    # --- reading and writing ------------------------------------------------------------------

    def put(
        self, fingerprint: str, ids: Sequence[str], memories: Sequence[Memory], codec: str, description: dict[str, Any]
    ) -> None:
        """See `Bank.put_memories`."""
        check_codec(codec)
        if len(ids) != len(memories):
            raise InputError(f"{len(ids)} ids and {len(memories)} memories", "give one memory for each id")
        with self.store.writing():
            known(self.scope, ids)
            name = self.register(fingerprint, description)
            before = self.store.edition(name)
            fresh = before == self._editions.get(name, before)
            for first in range(0, len(ids), PAYLOAD_ROWS):
                part = slice(first, first + PAYLOAD_ROWS)
                payloads = {id: encode(memory, codec) for id, memory in zip(ids[part], memories[part], strict=True)}
                self._write(name, fingerprint, payloads, codec)
                self.cache.discard(payloads)
            if not fresh:
                self.cache.clear(fingerprint)
            self._editions[name] = self.store.edition(name)

    def _write(self, name: str, fingerprint: str, payloads: dict[str, bytes], codec: str) -> None:
        rows = [
            {
                "id": id,
                "namespace": self.scope.namespace,
                "codec": codec,
                "checksum": payload_checksum(fingerprint, id, self.scope.namespace, codec, payload),
                "payload": payload,
            }
            for id, payload in payloads.items()
        ]
        upsert(self.scope, name, pa.Table.from_pylist(rows, schema=MEMORIES))

    def load(self, fingerprint: str, ids: Sequence[str]) -> list[Memory | None]:
        """See `Bank.load`."""
        name = memories_table(check_fingerprint(fingerprint))
        edition = self.store.edition(name)
        if edition != self._editions.get(name):
            self.cache.clear(fingerprint)
            self._editions[name] = edition
        found = {id: memory for id in dict.fromkeys(ids) if (memory := self.cache.get(fingerprint, id)) is not None}
        missing = [id for id in dict.fromkeys(ids) if id not in found]
        if missing and edition[-1]:
            for id, memory in self.read(fingerprint, missing).items():
                self.cache.put(fingerprint, id, memory)
                found[id] = memory
        return [found.get(id) for id in ids]

    def read(self, fingerprint: str, ids: Sequence[str]) -> dict[str, Memory]:
        """From disk, by id, past the RAM cache; those that are not there are left out."""
        name = memories_table(fingerprint)
        held = self._heads.setdefault(name, Resident(self.store, name, HEAD[:-1])).rows()
        rows = self.store.read_at((name,), lambda pin: _read(pin, held, list(dict.fromkeys(ids))), [])
        mine = [row for row in rows if row["namespace"] == self.scope.namespace]
        return {row["id"]: decode_row(row, fingerprint) for row in mine}

    def row_bytes(self) -> int:
        return sum(each.num_bytes for each in self._heads.values())

    def clear_heads(self) -> None:
        """Drops what RAM holds of rows, but not the memories themselves."""
        self._heads.clear()

    def missing(self, fingerprint: str, ids: Sequence[str]) -> list[str]:
        held = held_ids(self.scope, memories_table(check_fingerprint(fingerprint)), ids)
        return [id for id in dict.fromkeys(ids) if id not in held]

    def drop(self, fingerprint: str) -> int:
        """Removes this namespace's memories of `fingerprint`; returns how many there were."""
        name = memories_table(check_fingerprint(fingerprint))
        with self.store.writing():
            count = self.count(fingerprint)
            self.cache.clear(fingerprint)
            if self.store.read(name, lambda table: table.count_rows(), -1) == count:
                self.store.drop(name)
            elif count:
                delete(self.scope, name, self.scope.where())
        return count


async def _read(pin: Pin, held: Rows | None, ids: list[str]) -> list[dict[str, Any]]:
    """Rows of `ids`; where their addresses are in RAM, of the version that is read, without a query."""
    if held is not None and held.edition == pin.edition:
        return await with_payloads(pin.table, held.read([*held.by_ids(ids).values()], HEAD))
    found = await pin.table.query().where(any_of("id", ids)).select(HEAD).to_arrow()
    return await with_payloads(pin.table, found.to_pylist())


async def with_payloads(table: Table, heads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whole rows of `MEMORIES`, from dicts of `HEAD`."""
    if not heads:
        return []
    payloads = await table.fetch_blobs("payload", [head[ADDRESS] for head in heads])
    return [head | {"payload": payload} for head, payload in zip(heads, payloads.to_pylist(), strict=True)]


def describe(description: dict[str, Any]) -> str:
    """A fingerprint's description for people: its "model" with its "method", or all of it."""
    if "model" in description and "method" in description:
        return f"{description['model']} with {description['method']}"
    return ", ".join(f"{name}={value}" for name, value in sorted(description.items())) or "an undescribed model"


def payload_checksum(fingerprint: str, id: str, namespace: str, codec: str, payload: bytes) -> str:
    return digest(fingerprint, id, namespace, codec, payload)


def decode_row(row: dict[str, Any], fingerprint: str) -> Memory:
    """BankCorrupted where the checksum does not hold; then nothing of the payload is read."""
    expected = payload_checksum(fingerprint, row["id"], row["namespace"], row["codec"], row["payload"])
    if row["checksum"] != expected:
        raise BankCorrupted(
            f"the memory of chunk {row['id']!r} is not what was written: its checksum does not hold",
            "its text is kept apart: `remanence bank export`, then `bank import` into a new bank, writes it again",
        )
    return decode(row["payload"], row["codec"])


def upsert(scope: Scope, name: str, rows: pa.Table) -> None:
    """Adds rows by id in one commit, in place of those that are there. The caller holds the lock."""
    if not rows.num_rows:
        return
    if held_ids(scope, name, rows["id"].to_pylist()):
        scope.store.mark_dirty(name)
        scope.store.commit(
            name,
            lambda table: (
                table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
            ),
            rows.num_rows,
        )
    else:
        scope.store.commit(name, lambda table: table.add(rows), rows.num_rows)


def delete(scope: Scope, name: str, condition: str) -> int:
    """Deletes rows that meet `condition`; returns how many. Makes no version where there are none."""
    count = scope.store.read(name, lambda table: table.count_rows(condition), 0)
    if count:
        scope.store.mark_dirty(name)
        scope.store.commit(name, lambda table: table.delete(condition))
    return count


def held_ids(scope: Scope, name: str, ids: Sequence[str] | None = None) -> set[str]:
    """Which of `ids` (None: which at all) table `name` has rows of, in this namespace."""

    def read(condition: str) -> list[str]:
        rows = scope.store.read(name, lambda table: table.query().where(condition).select(["id"]).to_arrow(), None)
        return rows["id"].to_pylist() if rows is not None else []

    if ids is None:
        return set(read(scope.where()))
    found: set[str] = set()
    for first in range(0, len(ids), 1_000):
        found |= set(read(scope.where(any_of("id", ids[first : first + 1_000]))))
    return found


def put_vectors(scope: Scope, embedder: str, ids: Sequence[str], vector_NE: np.ndarray) -> None:
    """See `Bank.put_vectors`."""
    vector_NE = np.ascontiguousarray(vector_NE, dtype=np.float32)
    if vector_NE.ndim != 2 or len(vector_NE) != len(ids) or not vector_NE.size:
        raise InputError(f"{len(ids)} ids and vectors of shape {vector_NE.shape}", "give one vector for each id")
    if not np.isfinite(vector_NE).all() or not np.linalg.norm(vector_NE, axis=1).all():
        raise InputError(f"a vector of {embedder!r} is zero, NaN or infinite", "check the embedder")
    with scope.store.writing():
        known(scope, ids)
        name = vectors_table(embedder)
        check_dim(scope, name, embedder, vector_NE.shape[1])
        if not scope.store.exists(name):
            scope.store.create(
                name,
                vectors_schema(vector_NE.shape[1]),
                {"kind": "vectors", "embedder": embedder, "dim": vector_NE.shape[1]},
            )
        last = {id: row for row, id in enumerate(ids)}
        kept = vector_NE[list(last.values())]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(kept.ravel()), kept.shape[1])
        columns = [pa.array(list(last)), pa.array([scope.namespace] * len(last)), vectors]
        upsert(scope, name, pa.Table.from_arrays(columns, schema=vectors_schema(kept.shape[1])))


def check_dim(scope: Scope, name: str, embedder: str, dim: int) -> None:
    entry = scope.store.meta.tables.get(name)
    if entry and entry["dim"] != dim:
        problem = f"a vector of {embedder!r} has {dim} numbers, this bank's have {entry['dim']}"
        raise InputError(problem, "give embedders of different width different names")
