"""Tables as this package opens them do what LanceDB's own public classes do, result for result."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.query import MatchQuery
from lancedb.table import AsyncTable

from remanence.bank.lance import ADDRESS, Database, Table, run
from remanence.bank.meta import TextIndex
from remanence.bank.rows import MEMORIES

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32(), 8), nullable=False),
    ]
)
WORDS = ("harbour", "Kettle", "naïve", "4417", "灯台", "boats", "the", "sea", "red", "don't")


def rows(numbers: range, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    values = [{"id": str(n), "text": " ".join(rng.choice(WORDS, 5)), "vector": rng.normal(size=8)} for n in numbers]
    return pa.Table.from_pylist(values, schema=SCHEMA)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    database = run(Database.open(tmp_path))
    run(database.create_table("t", SCHEMA))
    table = run(database.open_table("t"))
    run(table.add(rows(range(60))))
    run(table.create_index("id", "BTree"))
    run(table.create_index("text", "FTS", **TextIndex().settings()))
    run(table.add(rows(range(60, 80), seed=1)))  # these are in no index
    return table


async def public(table: Table, words: str, where: str | None) -> list[dict]:
    query = AsyncTable(table.handle).query().nearest_to_text(MatchQuery(words, "text")).select(["id", "_score"])
    return (await (query.where(where) if where else query).limit(100).to_arrow()).to_pylist()


@pytest.mark.parametrize("where", [None, "id != '7'"])
@pytest.mark.parametrize("words", ["red boat", "kettles", "灯台", "4417!", "naïve", "+red -sea", "(kettle", "zzz"])
def test_text_search(table: Table, words: str, where: str | None) -> None:
    query = table.query().nearest_to_text(words, "text").select(["id", "_score"])
    ours = run((query.where(where) if where else query).limit(100).to_arrow()).to_pylist()
    theirs = run(public(table, words, where))
    assert sorted(ours, key=lambda row: row["id"]) == sorted(theirs, key=lambda row: row["id"])
    assert [row["_score"] for row in ours] == [row["_score"] for row in theirs]
    assert bool(ours) == (words != "zzz")


@pytest.mark.parametrize("num_probes", [None, 4])
def test_vector_search(table: Table, num_probes: int | None) -> None:
    vector = np.linspace(-1, 1, 8, dtype=np.float32)

    async def theirs() -> list[dict]:
        query = AsyncTable(table.handle).query().nearest_to(vector).column("vector").distance_type("cosine")
        query = query.bypass_vector_index() if num_probes is None else query.nprobes(num_probes)
        return (await query.select(["id", "_distance"]).limit(9).to_arrow()).to_pylist()

    ours = run(table.query().nearest_to(vector, "vector", num_probes).select(["id", "_distance"]).limit(9).to_arrow())
    assert ours.to_pylist() == run(theirs())
    assert ours.num_rows == 9


def test_what_is_written_is_what_lancedb_reads(table: Table, tmp_path: Path) -> None:
    run(table.merge(rows(range(5), seed=2), delete_where="id = '79'"))
    run(table.delete("id = '78'"))
    other = lancedb.connect(str(tmp_path)).open_table("t")
    expected = {row["id"]: row for row in rows(range(60)).to_pylist() + rows(range(60, 78), seed=1).to_pylist()}
    expected |= {row["id"]: row for row in rows(range(5), seed=2).to_pylist()}
    assert {row["id"]: row for row in other.to_arrow().to_pylist()} == expected
    assert run(table.version()) == other.version
    assert run(table.versions()) == [each["version"] for each in other.list_versions()]
    assert run(table.indexes()) == {"id": "id_idx", "text": "text_idx"}


def test_a_stream_is_read_while_it_is_written(table: Table, tmp_path: Path) -> None:
    source, heights = run(run(Database.open(tmp_path)).open_table("t")), []

    def batches() -> Iterator[pa.RecordBatch]:
        stream = run(source.query().select(SCHEMA.names).stream(16))
        while (batch := run(anext(stream, None))) is not None:
            heights.append(batch.num_rows)
            yield batch

    run(table.add(pa.RecordBatchReader.from_batches(SCHEMA, batches()), "overwrite"))
    assert (sum(heights), max(heights)) == (80, 16)
    assert run(table.count_rows()) == 80
    run(table.optimize(timedelta(0)))
    assert len(run(table.versions())) == 1


def test_blobs_are_merged_and_read(tmp_path: Path) -> None:
    database = run(Database.open(tmp_path))
    run(database.create_table("m", MEMORIES))
    table = run(database.open_table("m"))
    row = {"id": "a", "namespace": "n", "codec": "c", "checksum": "s", "payload": b"one" * 999}
    run(table.add(pa.Table.from_pylist([row, row | {"id": "b"}], MEMORIES)))
    run(table.merge(pa.Table.from_pylist([row | {"payload": b"two" * 999}, row | {"id": "c"}], MEMORIES)))
    heads = run(table.query().select(["id", ADDRESS]).to_arrow())
    payloads = run(table.fetch_blobs("payload", heads[ADDRESS].to_pylist())).to_pylist()
    expected = {"a": b"two" * 999, "b": b"one" * 999, "c": b"one" * 999}
    assert dict(zip(heads["id"].to_pylist(), payloads, strict=True)) == expected
