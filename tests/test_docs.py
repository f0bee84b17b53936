"""The pages in docs/ are true where a machine can check it: blocks run, links resolve, generated pages are complete."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remanence import cli, methods

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "remanence"
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "AGENTS.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^(?:<!-- not run: (.+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
PROGRAMS = ("remanence", "torchrun", "python", "pip", "just", "HF_HUB_OFFLINE=0 remanence")
MOST_NOT_RUN = 14


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = load_generator()


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The blocks that run."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [code for reason, each, code in found if each == language and not reason]


def not_run(page: Path) -> list[str]:
    return [code for reason, _, code in BLOCK.findall(page.read_text(encoding="utf-8")) if reason]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


# -- blocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
@pytest.mark.usefixtures("elsewhere")
def test_python_blocks_run_and_check_what_they_claim(page):
    names: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec", dont_inherit=True), names)
    assert "rm" in names
    names.clear()
    gc.collect()  # a method that a page defines is known for as long as its class lives
    assert any("assert " in code for code in blocks(page, "python")), f"{page.name} claims nothing that could fail"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=name_of)
@pytest.mark.usefixtures("elsewhere")
def test_shell_blocks_run(page):
    Path("notes.txt").write_text("The lighthouse keeper is Odile Marsh.", encoding="utf-8")
    before = ["remanence write notes.txt", 'remanence ask "Who is the lighthouse keeper?" --max-tokens 2']
    for line in [*before, *"".join(blocks(page, "bash")).splitlines()]:
        if line.startswith("echo "):
            subprocess.run(["bash", "-c", line], check=True)
            continue
        assert line.startswith("remanence "), f"teach this test to run {line!r}, or mark the block as not run"
        assert cli.run(shlex.split(line)[1:]) == 0, line


def test_few_blocks_are_not_run():
    """`<!-- not run: reason -->` stands in front of each of them."""
    assert sum(len(not_run(page)) for page in PAGES) <= MOST_NOT_RUN


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_command_hides_in_a_block_of_another_language(page):
    for _, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language not in ("bash", "python"):
            assert not any(line.startswith(f"{program} ") for line in code.splitlines() for program in PROGRAMS), code


def test_commands_that_are_not_run_have_options_that_exist():
    import typer

    from remanence.cli.app import build

    known = dict(GENERATE.commands(typer.main.get_command(build())))
    lines = [line for page in PAGES for code in not_run(page) for line in code.splitlines()]
    for line in lines:
        words = shlex.split(line)
        if "remanence" not in words:
            continue
        words = words[words.index("remanence") :]
        command = max((path for path in known if words[: len(path.split())] == path.split()), key=len)
        options = {name for param in known[command].params for name in param.opts}
        given = {word for word in words if word.startswith("--")}
        assert given <= options, f"{line!r} has {given - options}"


# -- what pages point to -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    made = {ROOT / "docs" / name for name in GENERATE.GENERATED}
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        file = Path(os.path.normpath(page.parent / target))
        assert file.exists() or file in made, f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_the_pages_name_exist(page):
    """`tests/lm/`, `cli/app.py`: below the repository or the package."""
    for path in re.findall(r"`((?:[\w-]+/)+(?:[\w-]+\.(?:py|json|md))?)`", page.read_text(encoding="utf-8")):
        if path.split("/")[0] in OURS:
            assert (ROOT / path).exists() or (SOURCE / path).exists(), f"{name_of(page)} names {path}"


OURS = {"tests", "docs", "examples", "benchmarks", *(path.name for path in SOURCE.iterdir() if path.is_dir())}
"""The first part of a path that is meant to be one of ours."""


# -- the pages that are generated ----------------------------------------------------------------------------------


def test_the_table_of_files_shows_every_module_with_its_own_sentence():
    page, folders = GENERATE.files_page(), GENERATE.modules()
    shown = {f"{folder}/{name}" for folder, found in folders.items() for name in found}
    modules = {path for path in SOURCE.rglob("*.py") if path.read_text(encoding="utf-8").strip()}
    assert shown == {path.relative_to(SOURCE.parent).as_posix() for path in modules}
    for found in folders.values():
        for name, sentence in found.items():
            assert sentence, f"{name} has no docstring"
            assert f"| `{name}` | {GENERATE.cell(sentence)} |" in page


def test_the_command_line_page_shows_what_help_shows(capsys):
    import typer

    from remanence.cli.app import build

    page = GENERATE.command_line_page()
    sections = dict(re.findall(r"^##+ `(remanence[^`]*)`\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    commands = GENERATE.commands(typer.main.get_command(build()))
    assert sections.keys() == {path for path, _ in commands}
    for path, _ in commands:
        assert cli.run([*path.split()[1:], "--help"]) == 0
        table = capsys.readouterr().out
        first = re.compile(r"^\W{0,6}(--[a-z][a-z-]*)", re.MULTILINE)  # help that is wrapped stands further right
        assert set(first.findall(table)) - {"--help"} == set(re.findall(r"^\| `(--[a-z-]+)", sections[path], re.M)), (
            path
        )


def test_the_page_of_methods_shows_every_setting():
    page = GENERATE.methods_page()
    for name, cls in methods.known().items():
        if cls.__module__.startswith("remanence."):
            assert f"## `{name}`" in page
            assert all(f"`{name}:{preset}`" in page for preset in cls.presets)


def test_links_to_copied_files_become_links_to_their_pages():
    text = "[card](../../src/remanence/assets/nano/README.md#training) [page](../how-to/extend.md)"
    linked = GENERATE.relinked(text, "explanation/memory3.md")
    assert linked == "[card](../reference/models/nano/index.md#training) [page](../how-to/extend.md)"
    assert GENERATE.relinked("[nano](../nano/README.md)", "reference/models/nano-chat/index.md") == (
        "[nano](../nano/index.md)"
    )


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    made = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    assert (tmp_path / "site" / "reference" / "python" / "index.html").exists()
    for page in (tmp_path / "site").rglob("*.html"):  # read offline: nothing is fetched from another server
        assert not re.findall(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//', page.read_text(encoding="utf-8"))
        styles = re.findall(r"<link[^>]*>", page.read_text(encoding="utf-8"))
        assert not [tag for tag in styles if "stylesheet" in tag and "//" in tag]
