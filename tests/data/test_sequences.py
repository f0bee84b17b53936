"""Sequences on disk come back as they were written, by any number; what is damaged is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs, ipc

from remanence.data import sequences
from remanence.data.sequences import (
    ABOUT,
    REFERENCES,
    About,
    SequenceFolder,
    StoredSequence,
    write_about,
    write_references,
    write_sequences,
)
from remanence.errors import InputError

EMPTY = About("abc" * 20, 100, 8, 4, 6, 0.9)


def written(
    folder: Path, num_sequences: int = 700, num_references: int = 300
) -> tuple[list[StoredSequence], list[list[int]]]:
    rng = Random(0)
    references = [[rng.randrange(100) for _ in range(rng.randint(1, 6))] for _ in range(num_references)]
    rows = [
        StoredSequence(
            np.array([rng.randrange(100) for _ in range(8)], np.int32), [number % num_references, 0], f"t#{number}"
        )
        for number in range(num_sequences)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    assert write_references(folder, ((ids, "t") for ids in references)) == num_references
    count = sum(write_sequences(folder, EMPTY, rows))
    about = write_about(folder, replace(EMPTY, num_sequences=count, num_references=num_references))
    assert about.sizes == {path.name: path.stat().st_size for path in folder.glob("*.arrow")}
    return rows, references


@pytest.mark.parametrize("kind", ["folder", "uri", "far"])
def test_rows_come_back_by_any_number_over_files_and_batches(tmp_path, monkeypatch, kind) -> None:
    """ "far": through a file system whose files cannot be mapped."""
    monkeypatch.setattr(sequences, "SHARD", 300)
    rows, references = written(tmp_path / "s")
    assert len(list((tmp_path / "s").glob("sequences-*.arrow"))) == 3
    if kind == "far":
        far = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
        monkeypatch.setattr(sequences, "_file_system", lambda place: (far, "s"))
    stored = SequenceFolder(tmp_path.as_uri() + "/s" if kind == "uri" else tmp_path / "s", EMPTY.tokenizer)
    assert isinstance(stored.files, fs.LocalFileSystem) == (kind != "far")
    assert len(stored) == 700
    for number in (0, 255, 256, 299, 300, 556, 599, 600, 699, 3):
        (found,) = stored.rows([number])
        assert found.ids.tolist() == rows[number].ids.tolist()
        assert found.references == rows[number].references
        assert found.source == rows[number].source
    assert stored.has("sequences.json")
    assert not stored.has("valid/sequences.json")
    (tmp_path / "s" / "tokenizer").mkdir()
    (tmp_path / "s" / "tokenizer" / "tokenizer.json").write_text("{}")
    stored.copy("tokenizer", tmp_path / "copied")
    assert (tmp_path / "copied" / "tokenizer.json").read_text() == "{}"
    with pytest.raises(InputError, match="nothing of the sequences"):
        stored.copy("nothing", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied", "s"]
    assert stored.reference_ids([299, 0, 255, 256]) == [references[number] for number in (299, 0, 255, 256)]


def test_the_same_rows_are_the_same_bytes(tmp_path) -> None:
    for name in "ab":
        written(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_another_tokenizer_and_what_is_no_folder_of_sequences_are_refused(tmp_path) -> None:
    written(tmp_path / "s", 3, 3)
    with pytest.raises(InputError, match="made with another tokenizer"):
        SequenceFolder(tmp_path / "s", "def")
    for place in (tmp_path / "nothing", tmp_path, tmp_path.as_uri()):
        with pytest.raises(InputError, match="holds no finished sequences"):
            SequenceFolder(place)
    with pytest.raises(InputError, match="cannot be opened"):
        SequenceFolder("nonsense://x/y")


def test_damage_is_named(tmp_path) -> None:
    def damaged(name: str, old: bytes, new: bytes) -> None:
        written(tmp_path / "s", 3, 3)
        file = tmp_path / "s" / name
        data = file.read_bytes()
        assert old in data
        file.write_bytes(data.replace(old, new))
        with pytest.raises(InputError, match="is damaged") as caught:
            SequenceFolder(tmp_path / "s").reference_ids(range(3))
        assert name in str(caught.value) or "Arrow" in str(caught.value)

    written(tmp_path / "s", 3, 3)
    end = (tmp_path / "s" / REFERENCES).read_bytes()[-40:]
    damaged(REFERENCES, end, b"")
    damaged(REFERENCES, end, b"\0" * 40)
    damaged(ABOUT, b'"num_sequences": 3', b'"num_sequences": 4')
    damaged(ABOUT, b'"vocab_size"', b'"vocab"')
    damaged(ABOUT, b"{", b"")
    written(tmp_path / "s", 3, 3)
    (tmp_path / "s" / "sequences-00000.arrow").unlink()
    with pytest.raises(InputError, match=r"sequences-00000\.arrow .* is damaged"):
        SequenceFolder(tmp_path / "s")


def test_numbers_out_of_range_are_damage(tmp_path) -> None:
    for change in ({"vocab_size": 50}, {"reference_tokens": 2}):
        written(tmp_path / "s", 20, 20)
        told = json.loads((tmp_path / "s" / ABOUT).read_text())
        (tmp_path / "s" / ABOUT).write_text(json.dumps({**told, **change}))
        with pytest.raises(InputError, match="is damaged"):
            SequenceFolder(tmp_path / "s").reference_ids(range(20))
    told["format"] = 2
    (tmp_path / "s" / ABOUT).write_text(json.dumps(told))
    with pytest.raises(InputError, match="has format 2, this version reads 1"):
        SequenceFolder(tmp_path / "s")


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": "100"},
        {"vocab_size": 100.0},
        {"chunk_tokens": 0},
        {"chunk_tokens": 3},
        {"num_sequences": True},
        {"overlap_limit": None},
        {"sizes": {"../sequences-00000.arrow": 1}},
        {"sizes": {"sequences-00000.arrow/x": 1}},
        {"sizes": {"other.arrow": 1}},
        {"sizes": {"references.arrow": -1}},
        {"more": 1},
    ],
)
def test_what_the_description_says_is_not_trusted(tmp_path, change) -> None:
    written(tmp_path / "s", 3, 3)
    told = json.loads((tmp_path / "s" / ABOUT).read_text())
    (tmp_path / "s" / ABOUT).write_text(json.dumps({**told, **change}))
    with pytest.raises(InputError, match=r"sequences\.json .* is damaged"):
        SequenceFolder(tmp_path / "s")


def rewritten(folder: Path, name: str, batches: list[pa.RecordBatch]) -> None:
    """Another writer's file in the place of ours, with its size in the description."""
    with pa.OSFile(str(folder / name), "wb") as file, ipc.new_file(file, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    told = json.loads((folder / ABOUT).read_text())
    told["sizes"][name] = (folder / name).stat().st_size
    (folder / ABOUT).write_text(json.dumps(told))


def table_of(folder: Path, name: str) -> pa.Table:
    with pa.OSFile(str(folder / name), "rb") as file:
        return ipc.open_file(file).read_all()


@pytest.mark.parametrize("sizes", [[100, 256, 256, 88], [600, 100], [256, 100, 344]])
def test_batches_of_other_sizes_never_give_another_row(tmp_path, sizes: list[int]) -> None:
    written(tmp_path / "s")
    table = table_of(tmp_path / "s", "sequences-00000.arrow").combine_chunks()
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [
        table.slice(start, size).combine_chunks().to_batches()[0] for start, size in zip(starts, sizes, strict=True)
    ]
    rewritten(tmp_path / "s", "sequences-00000.arrow", parts)
    with pytest.raises(InputError, match="is damaged"):
        SequenceFolder(tmp_path / "s").rows([650])


def test_columns_of_another_kind_and_what_is_no_number_are_damage(tmp_path) -> None:
    written(tmp_path / "s", 20, 20)
    rows = table_of(tmp_path / "s", "sequences-00000.arrow").to_pylist()
    loose = pa.schema([("ids", pa.list_(pa.int64())), ("references", pa.list_(pa.int32())), ("source", pa.string())])
    rewritten(tmp_path / "s", "sequences-00000.arrow", [pa.RecordBatch.from_pylist(rows, schema=loose)])
    with pytest.raises(InputError, match="its columns are not ids: fixed_size_list"):
        SequenceFolder(tmp_path / "s")
    for change in ({"ids": [None] * 8}, {"ids": None}, {"references": None}):
        written(tmp_path / "s", 20, 20)
        schema = table_of(tmp_path / "s", "sequences-00000.arrow").schema
        batch = pa.RecordBatch.from_pylist([{**rows[0], **change}, *rows[1:]], schema=schema)
        rewritten(tmp_path / "s", "sequences-00000.arrow", [batch])
        with pytest.raises(InputError, match="is damaged"):
            SequenceFolder(tmp_path / "s").rows([0])
        assert len(SequenceFolder(tmp_path / "s").rows([1])) == 1


def test_an_arrow_file_whose_offsets_lead_out_of_it_is_damage(tmp_path) -> None:
    written(tmp_path / "s", 3, 300)
    data = bytearray((tmp_path / "s" / REFERENCES).read_bytes())
    lengths = [len(row["ids"]) for row in table_of(tmp_path / "s", REFERENCES).to_pylist()]
    offsets = np.cumsum([0, *lengths[:256]], dtype=np.int32)
    at = bytes(data).index(offsets.tobytes())
    data[at + 400 : at + 404] = np.int32(2**30).tobytes()
    (tmp_path / "s" / REFERENCES).write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        SequenceFolder(tmp_path / "s").reference_ids([100])
