"""Every block of the README, in both languages, and every example, is run as it stands."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

from remanence import cli

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "remanence"
READMES = ["README.md", "README.zh.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALL = "python3 -m venv .venv && .venv/bin/pip install "


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


def blocks(readme: str, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall((ROOT / readme).read_text(encoding="utf-8")) if found == language]


def run_line(line: str) -> None:
    """One line of a shell block, in this process: what is installed here is what the line installs."""
    if line.startswith(INSTALL):
        line = line.split(" && ")[-1].removeprefix(".venv/bin/")
    if line.startswith("remanence "):
        assert cli.run(shlex.split(line)[1:]) == 0, line
    elif line.startswith("echo "):
        subprocess.run(["bash", "-c", line], check=True)
    else:
        assert line == "python -m pytest", f"teach this test to run {line!r}"


@pytest.mark.parametrize("readme", READMES)
def test_shell_blocks(readme):
    found = blocks(readme, "bash")
    assert len(found) == 3
    for line in "".join(found).splitlines():
        run_line(line)


@pytest.mark.parametrize("readme", READMES)
def test_python_blocks(readme):
    found = blocks(readme, "python")
    assert found
    for code in found:
        names: dict[str, object] = {}
        exec(compile(code, readme, "exec"), names)
        assert names["reply"].recalled, "the example recalls what it wrote"


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(example, capsys):
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


def test_both_languages_show_the_same_commands():
    english, chinese = (blocks(readme, "bash") for readme in READMES)
    assert english == chinese


@pytest.mark.parametrize("readme", READMES)
def test_the_page_fits_in_two_screens(readme):
    lines = (ROOT / readme).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("readme", READMES)
def test_the_tree_shows_what_is_there(readme):
    (tree,) = blocks(readme, "text")
    lines = [line.strip() for line in tree.splitlines()[1:-1]]
    folders = {name for line in lines for name in re.match(r"(?:\w+/ *)+|", line)[0].split()}
    packages = {f"{path.parent.name}/" for path in SOURCE.glob("*/__init__.py")}
    assert {name for name in folders if (SOURCE / name).is_dir()} == packages
    for name in re.findall(r"\w+\.py", tree):
        assert (SOURCE / name).exists(), name
    for line in lines:
        for name in re.findall(r"(\w+/)(?=[ :：])", line)[1:]:
            below = SOURCE / line.split("/")[0] / name
            assert below.is_dir() or (SOURCE / name).is_dir(), below


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = [line for line in blocks("README.md", "bash")[-1].splitlines() if line.endswith("pytest")]
    pattern = re.search(r"grep -m 1 -E '(.*?)' README", (ROOT / ".ci" / "run").read_text())[1]
    assert re.match(pattern, command)


@pytest.mark.parametrize("readme", READMES)
def test_links_lead_somewhere(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
