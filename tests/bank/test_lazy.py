"""What a bank imports, and when: no model library ever, LanceDB's own package only where it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import remanence
from remanence.bank import Bank

from .helpers import add_one

FILES = sorted((Path(remanence.__file__).parent / "bank").glob("*.py"))

WITHOUT_LANCEDB = """
import sys
sys.modules["lancedb"] = None
from remanence.bank import Bank, NewChunk
from remanence.errors import BankError
try:
    Bank.open(None)
except BankError as error:
    print(error)
print(sorted({"transformers", "torch", "lance", "pandas"} & set(sys.modules)))
"""
COMMAND = """
import sys
from remanence.cli import run
code = run(sys.argv[1:])
print(code, *sorted({"torch", "transformers", "lancedb", "lance_namespace"} & set(sys.modules)), file=sys.stderr)
"""
LANCEDB_AFTER = """
import sys
from remanence.bank import Bank
bank = Bank.open(sys.argv[1])
assert "lancedb" not in sys.modules
import lancedb
from lancedb.query import MatchQuery
table = lancedb.connect(sys.argv[1]).open_table("chunks")
print([row["text"] for row in table.search(MatchQuery("boat", "text")).to_list()] == [bank.list()[0].text])
print(sys.modules["lancedb._lancedb"].Session is lancedb.Session)
"""
LANCEDB_BEFORE = """
import sys
import lancedb
from remanence.bank import Bank
print([chunk.text for chunk in Bank.open(sys.argv[1]).list()] == ["Cleo has a boat"])
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The bank's folder, and the id of its only chunk."""
    folder = tmp_path_factory.mktemp("quick") / "bank"
    with Bank.open(folder) as bank:
        return str(folder), add_one(bank, "Cleo has a boat", source="cleo.txt")


def test_importing_needs_no_lancedb_and_opening_says_how_to_get_it() -> None:
    done = python(WITHOUT_LANCEDB)
    assert done.stdout.splitlines() == ["a bank needs the package 'lancedb' -> pip install lancedb", "[]"], done.stderr


@pytest.mark.parametrize(
    "verb",
    [["list"], ["stats"], ["search", "a boat"], ["search", "a boat", "--kind", "lexical"], ["show", "ID"]],
    ids=" ".join,
)
def test_a_look_into_a_bank_imports_no_model_library(filled: tuple[str, str], verb: list[str]) -> None:
    folder, id = filled
    done = python(COMMAND, "bank", *(id if word == "ID" else word for word in verb), "--bank", folder, "--json")
    assert done.stderr.splitlines()[-1] == "0", done.stderr
    assert verb == ["stats"] or "Cleo has a boat" in done.stdout


def test_a_search_of_a_bank_with_vectors_loads_the_model_that_may_have_made_them(tmp_path: Path) -> None:
    with Bank.open(tmp_path / "bank") as bank:
        bank.put_vectors("e", [add_one(bank, "Cleo has a boat")], np.eye(1, 8))
        assert bank.embedders() == ["e"]
    done = python(COMMAND, "bank", "search", "a boat", "--model", "tiny", "--bank", str(tmp_path / "bank"), "--json")
    assert {"0", "torch"} <= set(done.stderr.splitlines()[-1].split()), done.stderr
    assert "Cleo has a boat" in done.stdout


def test_forgetting_imports_no_model_library(tmp_path: Path) -> None:
    with Bank.open(tmp_path / "bank") as bank:
        add_one(bank, "kept")
        add_one(bank, "gone", source="gone.txt")
    done = python(COMMAND, "bank", "forget", "--source", "gone.txt", "--yes", "--bank", str(tmp_path / "bank"))
    assert done.stderr.splitlines()[-1] == "0", done.stderr


@pytest.mark.parametrize(("code", "lines"), [(LANCEDB_AFTER, 2), (LANCEDB_BEFORE, 1)])
def test_lancedb_itself_can_be_imported_before_and_after(filled: tuple[str, str], code: str, lines: int) -> None:
    done = python(code, filled[0])
    assert done.stdout.splitlines() == ["True"] * lines, done.stderr


def imports(file: Path) -> list[str]:
    """Dotted names of all imports: those inside functions and those for types alone, too."""
    names = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_a_bank_knows_no_model() -> None:
    allowed = tuple(f"remanence.{part}" for part in ("arguments", "bank", "errors", "files", "tensor_file", "types"))
    for file in FILES:
        for name in imports(file):
            assert not name.startswith(("transformers", "pickle")), f"{file.name} imports {name}"
            assert not name.startswith("remanence") or name.startswith(allowed), f"{file.name} imports {name}"


def test_no_modules_import_each_other() -> None:
    modules = {file.stem for file in FILES} - {"__init__"}
    graph = {
        file.stem: {name.split(".")[2] for name in imports(file) if name.startswith("remanence.bank.")} & modules
        for file in FILES
        if file.stem in modules
    }
    done: set[str] = set()
    while ready := [module for module, others in graph.items() if module not in done and others <= done]:
        done |= set(ready)
    assert done == modules, f"in a circle: {sorted(modules - done)}"


def test_no_module_reaches_into_another_objects_privates() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                owner = node.value
                assert isinstance(owner, ast.Name), f"{file.name}:{node.lineno} {node.attr}"
                assert owner.id in ("self", "cls"), f"{file.name}:{node.lineno} {owner.id}.{node.attr}"
