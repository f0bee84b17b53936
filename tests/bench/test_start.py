"""The bench starts real processes: what each took, what it imported, and another version beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from remanence.bench.start import SOURCE, Options, imports, run
from remanence.errors import InputError

COMMANDS = {"ask", "bank list", "--help", "doctor --json"}


def test_every_command_beside_what_it_imports_and_beside_another_version(tmp_path: Path) -> None:
    other = tmp_path / "src"
    shutil.copytree(SOURCE / "remanence", other / "remanence", ignore=shutil.ignore_patterns("__pycache__"))
    main = other / "remanence" / "__main__.py"
    main.write_text(f"import time\ntime.sleep(0.7)\n{main.read_text()}")  # this version is slower, and not by work
    options, advanced = Options(repeats=1, model="tiny", against=other), []
    found = run(options, advanced.append)
    assert len(advanced) == options.num_processes == 11
    results = found["results"]
    assert set(results) == {*COMMANDS, *(f"{name} (against)" for name in COMMANDS)} | {
        "python",
        "import torch",
        "import transformers",
    }
    assert results["ask"]["seconds"] > results["import torch"]["seconds"] > results["python"]["seconds"] > 0
    assert results["ask"]["cpu_seconds"] > results["--help"]["cpu_seconds"] > 0
    assert found["ratios"]["--help_new_over_against"] < 0.8
    assert found["ratios"]["--help_new_over_against"] == pytest.approx(
        results["--help"]["seconds"] / results["--help (against)"]["seconds"]
    )
    assert {"torch", "transformers", "all"} <= set(found["imports"]["ask"])
    assert not {"torch", "transformers"} & set(found["imports"]["--help"])


def test_imports_are_counted_by_package() -> None:
    found = imports(["-c", "import json, packaging.version"])
    assert found["packaging"] > 0
    assert found["all"] == pytest.approx(sum(seconds for name, seconds in found.items() if name != "all"))


def test_what_cannot_be_measured_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="repeats is 0"):
        Options(repeats=0)
    with pytest.raises(InputError, match="holds no package remanence"):
        Options(against=tmp_path)
    with pytest.raises(InputError, match="ZeroDivisionError"):
        imports(["-c", "1 / 0"])
