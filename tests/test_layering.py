"""Imports only point down, libraries stay in their folder, and no file or function outgrows its ceiling."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "remanence"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

LAYERS = (
    ("types", "errors"),
    ("arguments",),
    ("files",),
    ("tensor_file",),
    ("provenance", "lm", "bank", "text", "data"),
    ("measurement",),
    ("methods",),
    ("sources", "conversation"),
    ("snapshots", "ingest"),
    ("generation",),
    ("session",),
    ("serve", "train", "eval", "bench"),
    ("cli",),
    ("__main__",),
)
"""Lowest first. A part imports from lower lines only; neighbours on a line never import each other."""
LEVEL = {part: level for level, line in enumerate(LAYERS) for part in line}
REASON = {
    "types": "a noun must not know who uses it",
    "errors": "an error must not know who raises it",
    "arguments": "a check of a value must not know what it is for",
    "files": "a file must not know what is in it",
    "tensor_file": "a file must not know what its tensors mean",
    "provenance": "where a figure comes from must not depend on what was measured",
    "bank": "a bank must not know models, nor who fills it",
    "lm": "a model must not know where memory comes from",
    "text": "text is given its bank and its embedder",
    "data": "generated data must not know who trains on it",
    "measurement": "the envelope of results must not depend on what was measured",
    "methods": "a method is given what it recalls",
}
HOMES = {
    "transformers": {"lm", "train", "eval", "bench"},
    "sentence_transformers": {"text"},
    "lancedb": {"bank", "bench"},
    "lance": {"bank", "bench"},
    "pyarrow": {"bank", "bench", "data"},
    "typer": {"cli"},
    "rich": {"cli"},
}
"""Which parts may import a library."""
CONTRACT = ("sources", "conversation", "ingest", "snapshots", "generation", "session")
"""Parts that work with any method through `methods/base.py`."""
NEVER = {"pickle", "shelve", "dill", "marshal"}


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all imports, those inside functions and for type checking too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} has a relative import: write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_only_point_down(path):
    part = part_of(path)
    if part == "__init__":
        return
    assert part in LEVEL, f"{part} is new: give it a line in LAYERS"
    for name in imports(path):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "remanence" and target not in (part, ""):
            reason = REASON.get(part, "imports only point down")
            message = f"{name_of(path)} imports remanence.{target}: {reason}"
            assert target in LEVEL, message
            assert LEVEL[target] < LEVEL[part], message


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_libraries_stay_in_their_folder(path):
    for top in {name.split(".")[0] for name in imports(path)}:
        assert top not in NEVER, f"{name_of(path)} imports {top}: nothing that runs code is read from disk"
        homes = HOMES.get(top)
        assert homes is None or part_of(path) in homes, f"{name_of(path)} imports {top}: only {sorted(homes)} may"


def test_methods_never_import_each_other():
    shared = {"base", "load", "known", "__init__"}
    for path in (SOURCE / "methods").rglob("*.py"):
        method = path.relative_to(SOURCE / "methods").parts[0].removesuffix(".py")
        for name in imports(path):
            parts = name.split(".")
            if parts[:2] == ["remanence", "methods"] and method not in shared:
                assert parts[2] in {*shared, method}, f"{name_of(path)} imports {name}: one paper, one folder"


@pytest.mark.parametrize(
    "path",
    ["methods/base.py", "methods/__init__.py", *(f"{part}.py" for part in CONTRACT)],
)
def test_what_every_method_shares_knows_no_method(path):
    names = {module.stem for module in (SOURCE / "methods").iterdir()} - {"base", "__init__", "__pycache__"}
    assert {"memory3", "mplus"} <= names
    for name in imports(SOURCE / path):
        parts = name.split(".")
        assert parts[:2] != ["remanence", "methods"] or not names & set(parts[2:3]), f"{path} imports {name}"


def module_graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, also inside functions and for type checking.

    A package's `__init__` counts where a name is imported from the package itself.
    """
    modules = {".".join(("remanence", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    return {
        name: {target for target in (_module_of(dotted, modules) for dotted in imports(path)) if target}
        for name, path in modules.items()
    }


def _module_of(dotted: str, modules: dict[str, Path]) -> str | None:
    """The module that holds the name `dotted`: itself, or its longest prefix that is one."""
    while dotted and dotted not in modules:
        dotted = dotted.rpartition(".")[0]
    return dotted or None


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected sets of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in graph[module] - {module}:
            if target not in index:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == index[module]:
            members = stack[stack.index(module) :]
            del stack[-len(members) :]
            if len(members) > 1:
                found.append(sorted(members))

    for module in graph:
        if module not in index:
            visit(module)
    return found


def test_no_import_circles():
    """Also none for types alone: a circle means that its modules cannot be read one after the other."""
    wrong = circles(module_graph())
    assert not wrong, f"modules import each other: {wrong}"


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"e", "d"}}
    assert circles(graph) == [["a", "b", "c"]]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_ceilings(path):
    text = path.read_text(encoding="utf-8")
    num_lines = text.count("\n")
    assert num_lines <= MAX_FILE_LINES, f"{name_of(path)} has {num_lines} lines (at most {MAX_FILE_LINES}): split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{name_of(path)}: {node.name} has {length} lines, split it"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_what_it_is_in_one_sentence(path):
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ("" if text.strip() else "Empty.")
    assert docstring, f"{name_of(path)} has no docstring"
    assert docstring.split("\n")[0].endswith((".", "!", "?")), f"{name_of(path)}: end the first line with a full stop"
