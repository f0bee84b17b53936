"""What a row of each table looks like, and the checksum that shows when one has changed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from remanence.bank.checksums import digest
from remanence.errors import BankCorrupted
from remanence.types import Chunk

CHUNKS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("namespace", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("created", pa.float64(), nullable=False),
        pa.field("expires", pa.float64()),
        pa.field("supersedes", pa.string()),
        pa.field("hidden_until", pa.float64()),
        pa.field("record", pa.string(), nullable=False),
    ]
)
"""`record` is the row but its text, with a checksum, as JSON; the columns before it serve conditions and sums."""
FIELDS = ("id", "namespace", "num_tokens", "source", "start", "end", "created", "expires", "supersedes", "metadata")
READ = ["id", "text", "record"]
"""All that reading a row takes: every further column costs Lance a further read from disk."""
MEMORIES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("namespace", pa.string(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),
        pa.field("payload", pa.large_binary(), nullable=False, metadata={"lance-encoding:blob": "true"}),
    ]
)
"""Of a blob Lance's queries give only where it lies: `Table.fetch_blobs` reads it, without a plan."""
USAGE = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("namespace", pa.string(), nullable=False),
        pa.field("num_recalls", pa.int64(), nullable=False),
        pa.field("last_recalled", pa.float64(), nullable=False),
    ]
)


def vectors_schema(dim: int) -> pa.Schema:
    """id, namespace, and a float32 vector of `dim` numbers."""
    vector = pa.field("vector", pa.list_(pa.float32(), dim), nullable=False)
    return pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("id", "namespace")] + [vector])


@dataclass(frozen=True)
class Row:
    """A chunk as it is stored. `hidden_until`: no search finds it before that time (inf: never again)."""

    chunk: Chunk
    hash: str
    hidden_until: float | None = None

    def with_chunk(self, **changes: Any) -> Row:
        return replace(self, chunk=replace(self.chunk, **changes))

    def expired(self, now: float) -> bool:
        return self.chunk.expires is not None and self.chunk.expires <= now

    def hidden(self, now: float) -> bool:
        return self.hidden_until is not None and self.hidden_until > now


def row_to_dict(row: Row) -> dict[str, Any]:
    """Values of the columns of `CHUNKS`."""
    chunk = row.chunk
    fields = {
        "id": chunk.id,
        "namespace": chunk.namespace,
        "num_tokens": chunk.num_tokens,
        "source": chunk.source,
        "start": chunk.start,
        "end": chunk.end,
        "hash": row.hash,
        "created": float(chunk.created),
        "expires": None if chunk.expires is None else float(chunk.expires),
        "supersedes": chunk.supersedes,
        "hidden_until": row.hidden_until,
        "metadata": dict(chunk.metadata),
    }
    record = json.dumps(fields | {"checksum": _checksum(fields, chunk.text)}, ensure_ascii=False)
    return {name: fields[name] for name in CHUNKS.names if name in fields} | {"text": chunk.text, "record": record}


def _checksum(fields: dict[str, Any], text: str) -> str:
    return digest(json.dumps(fields, ensure_ascii=False, sort_keys=True), text)


def row_from_dict(columns: dict[str, Any]) -> Row:
    """From the columns of `READ`; others are compared with the record.

    BankCorrupted where the checksum does not hold or a column differs; then nothing of the row is used.
    """
    try:
        fields = json.loads(columns["record"])
        intact = fields.pop("checksum") == _checksum(fields, columns["text"])
        intact = intact and all(columns[name] == fields[name] for name in columns.keys() - {"text", "record"})
        chunk = Chunk(text=columns["text"], **{name: fields[name] for name in FIELDS})
        row = Row(chunk, fields["hash"], fields["hidden_until"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact, row = False, None
    if not intact or row is None:
        raise corrupted(columns["id"])
    return row


def corrupted(id: str) -> BankCorrupted:
    return BankCorrupted(
        f"chunk {id!r} is not what was written: its checksum does not hold, or its columns differ",
        "run `remanence bank verify`, then restore this bank from a copy or an export",
    )


def rows_to_table(rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist([row_to_dict(row) for row in rows], schema=CHUNKS)


def rows_from_table(table: pa.Table) -> list[Row]:
    return [row_from_dict(columns) for columns in table.select(READ).to_pylist()]


def hidden_until(superseders: Sequence[Row]) -> float | None:
    """When the last of the chunks that supersede a chunk expires; None where there is none."""
    ends = [math.inf if row.chunk.expires is None else row.chunk.expires for row in superseders]
    return max(ends, default=None)


def quote(value: str) -> str:
    """`value` as a literal of Lance's SQL: no text in it can end the literal."""
    return "'" + value.replace("'", "''") + "'"


def any_of(column: str, values: Iterable[str]) -> str:
    """The condition that `column` is one of `values` (at least one)."""
    return f"{column} IN ({', '.join(map(quote, values))})"
