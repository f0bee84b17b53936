"""One word, one meaning: names that were replaced by the field's terms do not come back."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "remanence"
FILES = sorted(SOURCE.rglob("*.py"))

GONE = frozenset(
    "Followed Kept Moment told read_again Recaller BankRecall Seen Watch Tap Enough Watched Draft Pin edition Sight "
    "Resident further compute_layers_again narrow_outputs Wanted Exam sit Sat LatentModules LatentDocument LatentPhase "
    "LatentRecipe LatentRun plain_query_BHTD plain_key_BGTD".split()
)
"""No name of any kind: classes, functions, arguments, variables, fields."""

GONE_DEFINITIONS = GONE | frozenset(
    "prepared circuits growth hints within smaller sinks Kind Item Recipe Phase shares moment".split()
)
"""No class and no function; as words of a sentence, or for a value, some of them are right."""

GONE_MODULES = frozenset(
    "seam family pools moments sealed seal care guard heap loop_ draft texts ahead small_kv choices kept "
    "further circuits growth hints live plain".split()
)
"""No file and no folder."""


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every identifier with its line."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value, getattr(node, "lineno", 0)


def definitions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_replaced_names_do_not_come_back(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [f"line {line}: {name}" for name, line in names(tree) if name in GONE]
    found += [f"line {line}: {name}" for name, line in definitions(tree) if name in GONE_DEFINITIONS - GONE]
    assert not found, f"{name_of(path)}: {', '.join(found)}"


def test_replaced_files_do_not_come_back() -> None:
    parts = {part.removesuffix(".py") for path in FILES for part in path.relative_to(SOURCE).parts}
    assert not parts & GONE_MODULES
