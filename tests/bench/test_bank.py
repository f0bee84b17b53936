"""The bench of the bank prints every figure that is promised, from systems that find the same chunks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remanence.bench.bank import run
from remanence.errors import InputError


def test_figures_of_a_small_run(tmp_path: Path) -> None:
    steps: list[int] = []
    report = json.loads(json.dumps(run(rows=700, seed=1, queries=20, folder=tmp_path, on_progress=steps.append)))
    assert (report["bench"], report["conditions"]["rows"], sum(steps)) == ("bank", 700, 700)
    assert {"commit", "machine", "results", "ratios"} <= set(report)
    bank = report["results"]["bank"]
    for name in ("median_seconds", "p95_seconds", "load_median_seconds", "rows_per_second", "bytes_per_second"):
        assert bank[name] > 0
    assert bank["bytes_per_memory"] > 24_576
    assert bank["compact_seconds"] > 0 < bank["before_compact_median_seconds"]
    assert bank["peak_rss_bytes"] > 0
    assert bank["found_share"] == report["results"]["sqlite_fts5_numpy_memmap"]["found_share"] == 1.0
    assert all(ratio > 0 for ratio in report["ratios"].values())
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="rows is 0"):
        run(rows=0)
