"""The pages in docs/ are true where a machine can tell: blocks run, links lead somewhere, the map shows every file."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from remanence import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def name_of(page: Path) -> str:
    return page.name


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
@pytest.mark.usefixtures("elsewhere")
def test_python_blocks_run_and_check_what_they_claim(page):
    names: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)
    assert "rm" in names
    assert any("assert " in code for code in blocks(page, "python")), f"{page.name} claims nothing that could fail"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=name_of)
@pytest.mark.usefixtures("elsewhere")
def test_shell_blocks_run(page):
    Path("notes.txt").write_text("The lighthouse keeper is Odile Marsh.", encoding="utf-8")
    before = ["remanence write notes.txt", 'remanence ask "Who is the lighthouse keeper?" --max-tokens 2']
    for line in [*before, *"".join(blocks(page, "bash")).splitlines()]:
        assert line.startswith("remanence "), f"teach this test to run {line!r}"
        assert cli.run(shlex.split(line)[1:]) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_map_shows_every_file_with_its_own_sentence():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "remanence"
    texts = {path.relative_to(source).as_posix(): path.read_text(encoding="utf-8") for path in source.rglob("*.py")}
    there = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items() if text.strip()}
    shown = dict(re.findall(r"^\| `([^`]+\.py)` \| (.*) \|$", page, re.MULTILINE))
    assert shown.keys() == there.keys(), f"docs/architecture.md differs in {shown.keys() ^ there.keys()}"
    for name, sentence in shown.items():
        assert there[name].split("\n\n")[0].replace("\n", " ") == sentence, f"docs/architecture.md, {name}"


def test_tests_that_the_pages_name_exist():
    for page in PAGES:
        for path in re.findall(r"`(tests/[\w/]+(?:\.py|/))`", page.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
