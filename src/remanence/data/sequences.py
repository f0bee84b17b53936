"""Stores token sequences, with a reference for each of their chunks, in Arrow files that are read row by row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs, ipc
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from remanence.errors import InputError
from remanence.files import write_whole

ABOUT, REFERENCES = "sequences.json", "references.arrow"
FORMAT = 1
SHARD, BATCH = 65_536, 256
"""Sequences per file, and rows per batch: a remote store transfers a whole batch for each row."""

Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
FileName = Annotated[str, Field(pattern=r"^(sequences-\d+|references)\.arrow$")]


@dataclass(frozen=True)
class About:
    """The content of `sequences.json`, beside the Arrow files. `tokenizer`: a fingerprint. `sizes`: bytes by file.

    `left_out`: sequences with a chunk without a reference. `rejected`: hits whose overlap with their sequence is above
    `overlap_limit` (Memory³ Eq. 6).
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    tokenizer: str
    vocab_size: Size
    sequence_tokens: Size
    chunk_tokens: Size
    reference_tokens: Size
    overlap_limit: float
    num_sequences: Count = 0
    num_references: Count = 0
    left_out: Count = 0
    rejected: Count = 0
    sizes: dict[FileName, Count] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def num_chunks(self) -> int:
        return self.sequence_tokens // self.chunk_tokens


@dataclass(frozen=True)
class StoredSequence:
    """A stored row: `sequence_tokens` token ids, the number of each chunk's reference, and the source of its text.

    The names of the fields are those of the Arrow columns.
    """

    ids: NDArray[np.int32]
    references: Sequence[int]
    source: str


def _reference_schema() -> pa.Schema:
    return pa.schema([("ids", pa.list_(pa.int32())), ("source", pa.string())])


def _sequence_schema(about: About) -> pa.Schema:
    return pa.schema(
        [
            ("ids", pa.list_(pa.int32(), about.sequence_tokens)),
            ("references", pa.list_(pa.int32(), about.num_chunks)),
            ("source", pa.string()),
        ]
    )


def write_references(folder: Path, references: Iterable[tuple[Sequence[int], str]]) -> int:
    """Writes (token ids, source) of all references, in the order of their numbers; returns how many."""
    return _write(
        folder / REFERENCES, _reference_schema(), ({"ids": ids, "source": source} for ids, source in references)
    )


def write_sequences(folder: Path, about: About, rows: Iterable[StoredSequence]) -> Iterator[int]:
    """Writes files of `SHARD` rows; yields the number of rows after each file."""
    schema, every = _sequence_schema(about), iter(rows)
    for number in range(10**9):
        part = islice(every, SHARD)
        first = next(part, None)
        if first is None:
            return
        whole = (asdict(row) for row in _chain(first, part))
        yield _write(folder / f"sequences-{number:05}.arrow", schema, whole)


def write_about(folder: Path, about: About) -> About:
    """Writes `sequences.json`, which makes a folder complete; returns its content, with the sizes of the files."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.arrow"))}
    whole = About(**{**asdict(about), "sizes": sizes})
    write_whole(folder / ABOUT, (json.dumps(asdict(whole), indent=1) + "\n").encode())
    return whole


def unfinish(folder: Path) -> None:
    """Removes the files of an earlier folder of sequences."""
    (folder / ABOUT).unlink(missing_ok=True)
    for left in folder.glob("*.arrow"):
        left.unlink()


def _chain(first: StoredSequence, rest: Iterable[StoredSequence]) -> Iterator[StoredSequence]:
    yield first
    yield from rest


def _write(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> int:
    """Writes batches of `BATCH` rows (the last may be shorter), so that a row's number gives its place."""
    every, count = iter(rows), 0
    with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, schema) as writer:
        while part := list(islice(every, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(part, schema=schema))
            count += len(part)
    return count


class SequenceFolder:
    """A folder of sequences: local (memory-mapped), or a URI that pyarrow supports (`s3://`, `gs://`, `file://`).

    InputError for a folder that is incomplete, of another tokenizer than `tokenizer`, or damaged.
    """

    def __init__(self, place: str | Path, tokenizer: str | None = None) -> None:
        self.place = str(place)
        self.files, self.root = _file_system(self.place)
        self.about = self._read_about()
        if tokenizer is not None and tokenizer != self.about.tokenizer:
            raise InputError(
                f"the sequences in {self.place!r} were made with another tokenizer ({self.about.tokenizer[:12]}, not "
                f"{tokenizer[:12]})",
                "make them again with `remanence data sequences --model MODEL`",
            )
        names = sorted(name for name in self.about.sizes if name != REFERENCES)
        self.readers = [self._open(name, _sequence_schema(self.about)) for name in names]
        self.references = self._open(REFERENCES, _reference_schema())
        self.ends = np.cumsum([self._num_rows(reader) for reader in self.readers], dtype=np.int64)
        counts = (int(self.ends[-1]) if names else 0, self._num_rows(self.references))
        if counts != (self.about.num_sequences, self.about.num_references):
            raise self._damaged(
                ABOUT, f"there are {counts[0]} sequences and {counts[1]} references, other than it says"
            )

    def __len__(self) -> int:
        return self.about.num_sequences

    def rows(self, numbers: Iterable[int]) -> list[StoredSequence]:
        """The sequences with these numbers, in this order."""
        return [self._row(number) for number in numbers]

    def reference_ids(self, numbers: Iterable[int]) -> list[list[int]]:
        """The token ids of references, each at most `reference_tokens`."""
        return [self._reference(number) for number in numbers]

    def has(self, name: str) -> bool:
        """Whether the folder has a file of this name."""
        return self.files.get_file_info(f"{self.root}/{name}").is_file

    def copy(self, name: str, to: Path) -> None:
        """Copies a folder in it to `to`: all files, or none (InputError)."""
        draft = to.with_name(f"{to.name}.new")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            fs.copy_files(f"{self.root}/{name}", str(draft.absolute()), self.files, fs.LocalFileSystem())
            draft.rename(to)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise self._damaged(name, _first_line(error)) from error

    def _row(self, number: int) -> StoredSequence:
        shard = int(np.searchsorted(self.ends, number, "right"))
        within = number - (int(self.ends[shard - 1]) if shard else 0)
        batch, at = self._batch(self.readers[shard], within)
        name = f"sequence {number}"
        ids = self._cells(batch.column("ids"), at, self.about.vocab_size, name)
        references = self._cells(batch.column("references"), at, self.about.num_references, f"references of {name}")
        if (len(ids), len(references)) != (self.about.sequence_tokens, self.about.num_chunks):
            raise self._damaged("an Arrow file", f"{name} has {len(ids)} tokens and {len(references)} references")
        return StoredSequence(ids, references.tolist(), batch.column("source")[at].as_py() or "")

    def _reference(self, number: int) -> list[int]:
        batch, at = self._batch(self.references, number)
        ids = self._cells(batch.column("ids"), at, self.about.vocab_size, f"reference {number}")
        if not 1 <= len(ids) <= self.about.reference_tokens:
            raise self._damaged(REFERENCES, f"reference {number} has {len(ids)} tokens")
        return ids.tolist()

    def _batch(self, reader: Any, row: int) -> tuple[Any, int]:
        try:
            batch = reader.get_batch(row // BATCH)
            batch.validate(full=True)  # Arrow would follow offsets that point outside the file
        except (OSError, pa.ArrowException) as error:
            raise self._damaged("an Arrow file", _first_line(error)) from error
        if row % BATCH >= batch.num_rows or (row // BATCH + 1 < reader.num_record_batches and len(batch) != BATCH):
            raise self._damaged("an Arrow file", f"a batch of it has {len(batch)} rows, not {BATCH}")
        return batch, row % BATCH

    def _num_rows(self, reader: Any) -> int:
        """The number of rows, if all batches but the last are full. The first is checked, too."""
        count = reader.num_record_batches
        if count == 0:
            return 0
        self._batch(reader, 0)
        return (count - 1) * BATCH + len(self._batch(reader, (count - 1) * BATCH)[0])

    def _cells(self, column: Any, at: int, limit: int, what: str) -> NDArray[np.int32]:
        """Entry `at` of a column of lists, with numbers from 0 to `limit` - 1; without a copy if it is in memory."""
        cells = column.slice(at, 1).flatten()
        if cells.null_count:
            raise self._damaged("an Arrow file", f"{what} has an entry that is not a number")
        number_N = cells.to_numpy(zero_copy_only=False)
        self._check(number_N, limit, what)
        return number_N

    def _check(self, number_N: NDArray[np.int32], limit: int, what: str) -> None:
        if len(number_N) and not 0 <= int(number_N.min()) <= int(number_N.max()) < limit:
            raise self._damaged("an Arrow file", f"{what} has a number outside 0 to {limit - 1}")

    def _read_about(self) -> About:
        try:
            with self.files.open_input_stream(f"{self.root}/{ABOUT}") as file:
                raw = file.read()
            content = json.loads(raw)
        except OSError as error:
            raise InputError(
                f"{self.place!r} holds no finished sequences ({ABOUT} is missing)",
                "make them with `remanence data sequences --data FOLDER --out FOLDER`",
            ) from error
        except ValueError as error:
            raise self._damaged(ABOUT, "it is not JSON") from error
        if not isinstance(content, dict) or "format" not in content:
            raise self._damaged(ABOUT, "it has no format")
        if content["format"] != FORMAT:
            raise InputError(
                f"{self.place!r} has format {content['format']}, this version reads {FORMAT}", "make it again"
            )
        try:
            about = TypeAdapter(About).validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            raise self._damaged(ABOUT, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if about.sequence_tokens % about.chunk_tokens:
            raise self._damaged(
                ABOUT, f"{about.sequence_tokens} tokens cannot be divided into chunks of {about.chunk_tokens}"
            )
        return about

    def _open(self, name: str, schema: pa.Schema) -> Any:
        path = f"{self.root}/{name}"
        try:
            if isinstance(self.files, fs.LocalFileSystem):
                file: Any = pa.memory_map(path)
            else:
                file = self.files.open_input_file(path)
            if file.size() != self.about.sizes[name]:
                raise self._damaged(name, f"{file.size()} bytes, not {self.about.sizes[name]}")
            reader = ipc.open_file(file)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise self._damaged(name, _first_line(error)) from error
        if not reader.schema.equals(schema):
            raise self._damaged(name, f"its columns are not {', '.join(f'{one.name}: {one.type}' for one in schema)}")
        return reader

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


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]
