"""What must work where LanceDB is not installed, and what a bank must never import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import remanence

WITHOUT_LANCEDB = """
import sys
sys.modules["lancedb"] = None
from remanence.bank import Bank, Draft
from remanence.errors import BankError
try:
    Bank.open(None)
except BankError as error:
    print(error)
print(sorted({"transformers", "lance", "pandas"} & set(sys.modules)))
"""


def test_importing_needs_no_lancedb_and_opening_says_how_to_get_it() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_LANCEDB], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["a bank needs the package 'lancedb' -> pip install lancedb", "[]"], done.stderr


def test_a_bank_knows_no_model() -> None:
    folder = Path(remanence.__file__).parent / "bank"
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(("transformers", "pickle")), f"{file.name} imports {name}"
                allowed = (
                    "remanence.bank",
                    "remanence.errors",
                    "remanence.files",
                    "remanence.tensor_file",
                    "remanence.types",
                )
                assert not name.startswith("remanence") or name.startswith(allowed), f"{file.name} imports {name}"
