"""Token sequences with a reference for each of their chunks, in Arrow files that are read row by row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs, ipc

from remanence.errors import InputError

ABOUT, REFERENCES = "sequences.json", "references.arrow"
FORMAT = 1
SHARD, BATCH = 65_536, 256
"""Sequences in a file, and rows in a batch, which is what a row costs to read from a store that is far away."""


@dataclass(frozen=True)
class About:
    """What `sequences.json` says, beside the Arrow files. `tokenizer` is its fingerprint, `sizes` the bytes of files.

    Of the making: `left_out` sequences had a chunk without a reference, `rejected` hits repeated too much of their
    sequence (overlap above `overlap_limit`, Memory³ Eq. 6).
    """

    tokenizer: str
    vocab_size: int
    sequence_tokens: int
    chunk_tokens: int
    reference_tokens: int
    overlap_limit: float
    num_sequences: int = 0
    num_references: int = 0
    left_out: int = 0
    rejected: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def num_chunks(self) -> int:
        return self.sequence_tokens // self.chunk_tokens


@dataclass(frozen=True)
class Stored:
    """One row: `ids` of `sequence_tokens`, the numbers of its chunks' references, and where its text begins."""

    ids: NDArray[np.int32]
    references: Sequence[int]
    source: str


def write_references(folder: Path, references: Iterable[tuple[Sequence[int], str]]) -> int:
    """Token ids and source of each, in the order of their numbers; returns how many."""
    schema = pa.schema([("ids", pa.list_(pa.int32())), ("source", pa.string())])
    return _write(folder / REFERENCES, schema, ({"ids": ids, "source": source} for ids, source in references))


def write_sequences(folder: Path, about: About, rows: Iterable[Stored]) -> Iterator[int]:
    """Files of `SHARD` rows; says after each how many rows it has."""
    schema = pa.schema(
        [
            ("ids", pa.list_(pa.int32(), about.sequence_tokens)),
            ("references", pa.list_(pa.int32(), about.num_chunks)),
            ("source", pa.string()),
        ]
    )
    every = iter(rows)
    for number in range(10**9):
        part = islice(every, SHARD)
        first = next(part, None)
        if first is None:
            return
        whole = (asdict(row) for row in _chain(first, part))
        yield _write(folder / f"sequences-{number:05}.arrow", schema, whole)


def write_about(folder: Path, about: About) -> About:
    """Last of all: a folder without it is not finished."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.arrow"))}
    whole = About(**{**asdict(about), "sizes": sizes})
    (folder / ABOUT).write_text(json.dumps(asdict(whole), indent=1) + "\n", encoding="utf-8")
    return whole


def _chain(first: Stored, rest: Iterable[Stored]) -> Iterator[Stored]:
    yield first
    yield from rest


def _write(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> int:
    """Batches of `BATCH` rows, the last one shorter: a row's number says where it stands."""
    every, count = iter(rows), 0
    with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, schema) as writer:
        while part := list(islice(every, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(part, schema=schema))
            count += len(part)
    return count


class SequenceFolder:
    """A folder of sequences, local (memory-mapped) or behind a URI that pyarrow knows (`s3://`, `gs://`, `file://`).

    Raises InputError for a folder that is none or not finished, of another tokenizer, or with a damaged file.
    """

    def __init__(self, place: str | Path, tokenizer: str | None = None) -> None:
        self.place = str(place)
        self.files, self.root = _file_system(self.place)
        self.about = self._read_about()
        if tokenizer is not None and tokenizer != self.about.tokenizer:
            raise InputError(
                f"the sequences in {self.place!r} are of another tokenizer ({self.about.tokenizer[:12]}, not "
                f"{tokenizer[:12]})",
                "make them again with `remanence data sequences --model MODEL`",
            )
        names = sorted(name for name in self.about.sizes if name != REFERENCES)
        self.readers = [self._open(name) for name in names]
        self.references = self._open(REFERENCES)
        self.ends = np.cumsum([_num_rows(reader) for reader in self.readers], dtype=np.int64)
        found = (int(self.ends[-1]) if names else 0, _num_rows(self.references))
        if found != (self.about.num_sequences, self.about.num_references):
            raise self._damaged(ABOUT, f"{found} sequences and references are not what it says")

    def __len__(self) -> int:
        return self.about.num_sequences

    def rows(self, numbers: Iterable[int]) -> list[Stored]:
        """Of these sequences, in the order of `numbers`."""
        return [self._row(number) for number in numbers]

    def reference_ids(self, numbers: Iterable[int]) -> list[list[int]]:
        """Token ids of references, each at most `reference_tokens`."""
        return [self._reference(number) for number in numbers]

    def has(self, name: str) -> bool:
        """Whether there is a file of that name in it."""
        return self.files.get_file_info(f"{self.root}/{name}").is_file

    def copy(self, name: str, to: Path) -> None:
        """The files of a folder in it, into `to`. InputError where there is none."""
        try:
            to.mkdir(parents=True, exist_ok=True)
            fs.copy_files(f"{self.root}/{name}", str(to.absolute()), self.files, fs.LocalFileSystem())
        except OSError as error:
            raise self._damaged(name, _first_line(error)) from error

    def _row(self, number: int) -> Stored:
        shard = int(np.searchsorted(self.ends, number, "right"))
        within = number - (int(self.ends[shard - 1]) if shard else 0)
        batch, at = self._batch(self.readers[shard], within)
        ids, references = (_cells(batch.column(name), at) for name in ("ids", "references"))
        self._check(ids, self.about.vocab_size, f"sequence {number}")
        self._check(references, self.about.num_references, f"the references of sequence {number}")
        return Stored(ids, references.tolist(), batch.column("source")[at].as_py())

    def _reference(self, number: int) -> list[int]:
        batch, at = self._batch(self.references, number)
        ids = _cells(batch.column("ids"), at)
        self._check(ids, self.about.vocab_size, f"reference {number}")
        if not 1 <= len(ids) <= self.about.reference_tokens:
            raise self._damaged(REFERENCES, f"reference {number} has {len(ids)} tokens")
        return ids.tolist()

    def _batch(self, reader: Any, row: int) -> tuple[Any, int]:
        try:
            return reader.get_batch(row // BATCH), row % BATCH
        except (OSError, pa.ArrowException) as error:
            raise self._damaged("an Arrow file", _first_line(error)) from error

    def _check(self, number_N: NDArray[np.int32], limit: int, what: str) -> None:
        if len(number_N) and not 0 <= int(number_N.min()) <= int(number_N.max()) < limit:
            raise self._damaged("an Arrow file", f"{what} holds a number that is not from 0 to {limit - 1}")

    def _read_about(self) -> About:
        try:
            with self.files.open_input_stream(f"{self.root}/{ABOUT}") as file:
                told = json.loads(file.read())
        except OSError as error:
            raise InputError(
                f"{self.place!r} holds no finished sequences ({ABOUT} is missing)",
                "make them with `remanence data sequences --data FOLDER --out FOLDER`",
            ) from error
        except ValueError as error:
            raise self._damaged(ABOUT, "it is not JSON") from error
        try:
            if told["format"] != FORMAT:
                raise InputError(f"{self.place!r} is of format {told['format']}, this is {FORMAT}", "make it again")
            return About(**told)
        except (KeyError, TypeError) as error:
            raise self._damaged(ABOUT, f"a field is missing or unknown: {error}") from error

    def _open(self, name: str) -> Any:
        path = f"{self.root}/{name}"
        try:
            if isinstance(self.files, fs.LocalFileSystem):
                file: Any = pa.memory_map(path)
            else:
                file = self.files.open_input_file(path)
            if file.size() != self.about.sizes[name]:
                raise self._damaged(name, f"{file.size()} bytes, not {self.about.sizes[name]}")
            return ipc.open_file(file)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise self._damaged(name, _first_line(error)) from error

    def _damaged(self, name: str, reason: str) -> InputError:
        return InputError(f"{name} of the sequences in {self.place!r} is damaged: {reason}", "make them again")


def _file_system(place: str) -> tuple[Any, str]:
    if "://" not in place:
        return fs.LocalFileSystem(), str(Path(place).absolute())
    try:
        files, root = fs.FileSystem.from_uri(place)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{place!r} cannot be opened: {_first_line(error)}", "give a folder, or a URI") from error
    return files, root.rstrip("/")


def _cells(column: Any, at: int) -> NDArray[np.int32]:
    """One list of a column, without a copy where it is in memory."""
    return column.slice(at, 1).flatten().to_numpy(zero_copy_only=False)


def _num_rows(reader: Any) -> int:
    """Of batches that are full but for the last."""
    count = reader.num_record_batches
    return 0 if count == 0 else (count - 1) * BATCH + reader.get_batch(count - 1).num_rows


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]
