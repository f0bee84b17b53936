"""A bank that was filled once, copied for each test that works on it; `call` runs one command in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from remanence.cli import run
from remanence.session import Session

TEXTS = {
    "lighthouse.txt": "The lighthouse of Skerry Point has 94 steps. Its keeper is Odile Marsh.",
    "gate.txt": "The code of the garden gate is 4417.",
    "ferry.txt": "The ferry Marigold leaves Quillhaven at 8:15.",
}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as exactly one JSON object."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@pytest.fixture
def call(tmp_path, monkeypatch, capsys) -> Callable[..., Outcome]:
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, model: bool = False) -> Outcome:
        capsys.readouterr()
        code = run([*arguments, *(["--model", "tiny"] if model else [])])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return command


@pytest.fixture(scope="session")
def filled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "bank"
    with Session("tiny", folder) as session:
        for source, text in TEXTS.items():
            session.write(text, source)
    return folder


@pytest.fixture
def bank(filled, tmp_path) -> Path:
    """`./bank` of the folder that `call` runs in."""
    return Path(shutil.copytree(filled, tmp_path / "bank"))


@pytest.fixture
def ids(call, bank) -> dict[str, str]:
    """Source to id of what the bank holds."""
    return {chunk["source"]: chunk["id"] for chunk in call("bank", "list", "--json").json["chunks"]}
