"""The cost of a large bank: hybrid search and loading five memories, beside SQLite, NumPy and a memory map."""

from __future__ import annotations

import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from remanence.bank import Bank, NewChunk
from remanence.errors import InputError
from remanence.measurement import Advance, envelope
from remanence.text.retrieve import Retriever, Threshold, fuse
from remanence.types import ExplicitMemory

NUM_LAYERS, NUM_HEADS, NUM_SLOTS, HEAD_DIM = 4, 8, 8, 32
"""The shape of a memory of nano with 8 kept tokens; with all tokens of a reference it is up to 16 times as large."""
WIDTH, NUM_WORDS, CHUNK_WORDS, QUERY_WORDS = 128, 30_000, 60, 8
BATCH_ROWS = 512
NUM_HITS, POOL = 5, 20
FINGERPRINT = "be" * 32


@dataclass(frozen=True)
class Question:
    """Words of one chunk, and a vector near the chunk's vector. `row`: the number of the chunk."""

    row: int
    text: str
    vector_E: np.ndarray


@dataclass
class FixedEmbedder:
    """An embedder that returns `vector_E`, since the time of embedding is not measured."""

    vector_E: np.ndarray = field(default_factory=lambda: np.ones(WIDTH, dtype=np.float32))
    name: str = "bench"
    dim: int = WIDTH

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.repeat(self.vector_E[None], len(texts), axis=0)


def run(
    rows: int = 100_000,
    seed: int = 0,
    queries: int = 200,
    folder: Path | None = None,
    on_progress: Advance | None = None,
) -> dict[str, Any]:
    """The envelope of a bank of `rows` random chunks, in a temporary folder in `folder` (about 80 KB a chunk).

    It is queried as written (`before_compact_median_seconds`), then after `compact`, which leaves few files.
    `cpu_median_seconds`: CPU time of a query over all threads, which other load does not change. The bank's RAM cache
    of memories is off, so all memories are loaded from files. The table of chunks and the places of memories are in RAM
    after the first few queries, as in any bank that is only read.
    """
    if rows < 1 or queries < 1:
        raise InputError(f"rows is {rows}, queries is {queries}", "use 1 or more")
    with tempfile.TemporaryDirectory(dir=folder, prefix="remanence-bench-") as name:
        questions: list[Question] = []
        built = _build(Path(name), rows, seed, queries, questions, on_progress or (lambda count: None))
        peaks = [_peak_rss_bytes()]
        loose = _in_process(_ask_bank, Path(name), questions, peaks=peaks)
        compacted = _in_process(_compact, Path(name), peaks=peaks)
        compact = _in_process(_ask_bank, Path(name), questions, peaks=peaks)
        plain = _ask_plain(Path(name), rows, questions)
    figures: dict[str, Any] = {**compact, **built["bank"], **compacted}
    figures["before_compact_median_seconds"] = loose["median_seconds"]
    figures["peak_rss_bytes"] = max(filter(None, peaks), default=None)
    memmap = plain["numpy_memmap"] | built["numpy_memmap"]
    sqlite = plain["sqlite_fts5_numpy_memmap"] | built["sqlite_fts5_numpy_memmap"]
    ratios = {
        "load_time_bank_per_memmap": figures["load_median_seconds"] / memmap["load_median_seconds"],
        "total_time_bank_per_sqlite": figures["median_seconds"] / sqlite["median_seconds"],
        "write_throughput_bank_per_memmap": figures["bytes_per_second"] / memmap["bytes_per_second"],
    }
    systems = {"bank": figures, "numpy_memmap": memmap, "sqlite_fts5_numpy_memmap": sqlite}
    load = {"load_average": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}
    conditions = {"rows": rows, "queries": len(questions), "seed": seed, "num_hits": NUM_HITS, **load}
    return envelope("bench", "bank", systems, conditions=conditions, ratios=ratios)


# --- building ---------------------------------------------------------------------------------


def _batches(rows: int, seed: int) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Batches of (texts, vectors, bits of keys and values): float32 N x E, and int16 N x 2 x L x G x M x D."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, length)) for length in rng.integers(4, 10, NUM_WORDS)])
    weights = 1 / np.arange(1, NUM_WORDS + 1)
    weights /= weights.sum()
    for first in range(0, rows, BATCH_ROWS):
        count = min(BATCH_ROWS, rows - first)
        texts = [" ".join(line) for line in rng.choice(words, (count, CHUNK_WORDS), p=weights)]
        texts = [f"{text} row{first + place}" for place, text in enumerate(texts)]
        vectors = rng.standard_normal((count, WIDTH), dtype=np.float32)
        values = rng.standard_normal((count, 2, NUM_LAYERS, NUM_HEADS, NUM_SLOTS, HEAD_DIM), dtype=np.float32)
        yield texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), _as_bf16(values)


def _as_bf16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()


def _memory(bits: np.ndarray) -> ExplicitMemory:
    key, value = torch.from_numpy(bits).view(torch.bfloat16)
    index = torch.arange(NUM_SLOTS, dtype=torch.int32).expand(NUM_LAYERS, NUM_HEADS, NUM_SLOTS)
    return ExplicitMemory(tuple(range(NUM_LAYERS)), key, value, index)


def _build(
    folder: Path, rows: int, seed: int, queries: int, questions: list[Question], advance: Advance
) -> dict[str, dict[str, float]]:
    """Writes the same rows to all systems; appends to `questions`. Seconds are of writing only."""
    chosen = set(np.random.default_rng(seed + 1).choice(rows, min(queries, rows), replace=False).tolist())
    seconds, first, raw_bytes = {"bank": 0.0, "raw": 0.0, "sqlite": 0.0}, 0, 0
    with (
        Bank.open(folder / "bank", ram_bytes=0) as bank,
        closing(sqlite3.connect(folder / "text.db")) as database,
        open(folder / "raw", "wb") as raw,
        open(folder / "vectors", "wb") as vectors_file,
    ):
        database.execute("CREATE VIRTUAL TABLE chunks USING fts5(text, tokenize = 'porter')")
        for texts, vectors, bits in _batches(rows, seed):
            began = time.perf_counter()
            _write_bank(bank, texts, vectors, bits)
            seconds["bank"] += time.perf_counter() - began
            began = time.perf_counter()
            raw.write(bits.tobytes())
            raw.flush()
            os.fsync(raw.fileno())
            seconds["raw"] += time.perf_counter() - began
            began = time.perf_counter()
            numbered = [(first + place, text) for place, text in enumerate(texts)]
            database.executemany("INSERT INTO chunks(rowid, text) VALUES (?, ?)", numbered)
            database.commit()
            vectors_file.write(vectors.tobytes())
            seconds["sqlite"] += time.perf_counter() - began
            raw_bytes += bits.nbytes
            questions += _questions(first, texts, vectors, chosen, seed)
            first += len(texts)
            advance(len(texts))
        began = time.perf_counter()
        bank.index()
        index_seconds = time.perf_counter() - began
        stats = bank.stats()
    payload_bytes = stats.bytes_per_memory * rows
    return {
        "bank": {
            "rows_per_second": rows / seconds["bank"],
            "bytes_per_second": payload_bytes / seconds["bank"],
            "bytes_per_memory": stats.bytes_per_memory,
            "index_seconds": index_seconds,
            "disk_bytes": stats.disk_bytes,
        },
        "numpy_memmap": {
            "rows_per_second": rows / seconds["raw"],
            "bytes_per_second": raw_bytes / seconds["raw"],
            "bytes_per_memory": raw_bytes / rows,
            "disk_bytes": raw_bytes,
        },
        "sqlite_fts5_numpy_memmap": {"rows_per_second": rows / (seconds["sqlite"] + seconds["raw"])},
    }


def _write_bank(bank: Bank, texts: list[str], vectors: np.ndarray, bits: np.ndarray) -> None:
    ids = [id for id, _ in bank.add([NewChunk(text, num_tokens=CHUNK_WORDS, source="bench") for text in texts])]
    bank.put_vectors("bench", ids, vectors)
    bank.put_memories(FINGERPRINT, ids, [_memory(each) for each in bits], description={"model": "none"})


def _questions(first: int, texts: list[str], vectors: np.ndarray, chosen: set[int], seed: int) -> list[Question]:
    """For each chosen row: some of its words, and its vector with noise (cosine about 0.9)."""
    questions = []
    for row in sorted(chosen & set(range(first, first + len(texts)))):
        rng = np.random.default_rng((seed, row))
        words = texts[row - first].split()[:-1]
        vector = vectors[row - first] + 0.04 * rng.standard_normal(WIDTH, dtype=np.float32)
        questions.append(Question(row, " ".join(rng.choice(words, QUERY_WORDS)), vector))
    return questions


# --- asking -----------------------------------------------------------------------------------


def _in_process(action: Callable[..., dict[str, float]], *arguments: Any, peaks: list[int | None]) -> dict[str, float]:
    """Runs `action` in a new process, which has to open the bank; appends its peak of RAM to `peaks`."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        figures = process.submit(action, *arguments).result()
        peaks.append(process.submit(_peak_rss_bytes).result())
    return figures


def _compact(folder: Path) -> dict[str, float]:
    with Bank.open(folder / "bank") as bank:
        receipt = bank.compact()
    return {"compact_seconds": receipt.seconds, "disk_bytes": receipt.bytes_after}


def _ask_bank(folder: Path, questions: list[Question]) -> dict[str, float]:
    """Queries the bank with the retriever of sessions. `open_seconds` includes the import of LanceDB."""
    began = time.perf_counter()
    with Bank.open(folder / "bank", ram_bytes=0) as bank:
        open_seconds = time.perf_counter() - began
        totals, loads, cpu, num_right = [], [], [], 0
        embedder = FixedEmbedder()
        retriever = Retriever(bank, embedder, threshold=Threshold(0.0, -1.0, 0.0))
        for question in [*questions[:3], *questions]:
            embedder.vector_E, cpu_began = question.vector_E, time.process_time()
            began = time.perf_counter()
            hits = retriever.search(question.text, NUM_HITS)
            searched = time.perf_counter()
            memories = bank.load(FINGERPRINT, [hit.chunk.id for hit in hits])
            loads.append(time.perf_counter() - searched)
            totals.append(time.perf_counter() - began)
            cpu.append(time.process_time() - cpu_began)
            assert all(memory is not None for memory in memories), "a written memory is missing"
            num_right += any(hit.chunk.text.endswith(f" row{question.row}") for hit in hits)
    return {
        **_times("", totals[3:]),
        **_times("load_", loads[3:]),
        "cpu_median_seconds": statistics.median(cpu[3:]),
        "open_seconds": open_seconds,
        "first_query_seconds": totals[0],
        "found_share": num_right / len(totals),
    }


def _ask_plain(folder: Path, rows: int, questions: list[Question]) -> dict[str, dict[str, float]]:
    """SQLite's BM25, cosines by one matrix product over vectors in RAM, and memories from a memory map."""
    shape = (rows, 2, NUM_LAYERS, NUM_HEADS, NUM_SLOTS, HEAD_DIM)
    raw = np.memmap(folder / "raw", dtype=np.int16, mode="r", shape=shape)
    vectors = np.fromfile(folder / "vectors", dtype=np.float32).reshape(rows, WIDTH)
    searches, loads, num_right = [], [], 0
    with closing(sqlite3.connect(folder / "text.db")) as database:
        for question in [*questions[:3], *questions]:
            began = time.perf_counter()
            rows_found = _search_plain(database, vectors, question)
            searched = time.perf_counter()
            memories = [_memory(np.array(raw[row])) for row in rows_found]
            loads.append(time.perf_counter() - searched)
            searches.append(searched - began)
            assert len(memories) == len(rows_found)
            num_right += question.row in rows_found
    totals = [search + load for search, load in zip(searches, loads, strict=True)][3:]
    share = {"found_share": num_right / len(searches)}
    return {
        "numpy_memmap": _times("load_", loads[3:]),
        "sqlite_fts5_numpy_memmap": _times("", totals) | _times("search_", searches[3:]) | share,
    }


def _search_plain(database: sqlite3.Connection, vectors: np.ndarray, question: Question) -> list[int]:
    words = " OR ".join(f'"{word}"' for word in question.text.split())
    query = "SELECT rowid, text FROM chunks WHERE chunks MATCH ? ORDER BY bm25(chunks) LIMIT ?"
    lexical = [row for row, _ in database.execute(query, (words, POOL))]
    cosines = vectors @ question.vector_E
    count = min(POOL, len(vectors))
    nearest = np.argpartition(cosines, -count)[-count:]
    dense = nearest[np.argsort(-cosines[nearest])].tolist()
    ranked = fuse({"lexical": [str(row) for row in lexical], "dense": [str(row) for row in dense]})
    return [int(row) for row, _ in ranked[:NUM_HITS]]


def _times(name: str, seconds: list[float]) -> dict[str, float]:
    ranked = sorted(seconds)
    return {
        f"{name}median_seconds": statistics.median(ranked),
        f"{name}p95_seconds": ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))],
    }


def _peak_rss_bytes() -> int | None:
    """The peak RAM of this process (Python, PyTorch and the bank); None if the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
