"""What is imported: every module without the extras, and by each command only what it uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((SOURCE / "remanence").rglob("*.py"))
]
EXTRAS = (
    *("matplotlib", "tensorboard", "pypdf", "sentence_transformers"),
    *("pytest", "xdist", "hypothesis", "ruff", "pyright", "peft", "accelerate", "datasets", "pandas", "sklearn"),
)
"""What `pip install remanence` does not bring, and what transformers uses where it finds it."""
WITHOUT_EXTRAS = """
import importlib, sys
from importlib.machinery import PathFinder

absent = set(sys.argv[1].split(","))


class Without:
    # As if they were not installed: neither their modules nor their metadata are found.
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else PathFinder.find_spec(name, path, target)

    def find_distributions(self, *context):
        for found in PathFinder.find_distributions(*context):
            if found.metadata["Name"].replace("-", "_") not in absent:
                yield found


sys.meta_path[:] = [Without() if finder is PathFinder else finder for finder in sys.meta_path]
names = sys.argv[2].split(",")
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
print(len(names), "tried;", *sorted(absent & {name.partition(".")[0] for name in sys.modules}))
"""
COMMAND = """
import atexit, sys
from remanence.cli import main
packages = lambda: sorted({name.partition(".")[0] for name in sys.modules})
atexit.register(lambda: print("packages:", *packages(), file=sys.stderr))
main()
"""
MODEL = {"torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "jinja2", "sympy"}
OPTIONAL = {"matplotlib", "tensorboard", "pypdf", "sentence_transformers", "peft", "scipy", "pandas"}
SHOWN = {"rich"}
STORE = {"pyarrow", "lancedb", "numpy"}
BANK = (MODEL - {"safetensors"}) | OPTIONAL
HELP = MODEL | OPTIONAL | STORE | {"packaging"}


def test_every_module_imports_with_the_core_dependencies_alone() -> None:
    assert "remanence.cli.ask" in MODULES
    names = [name for name in MODULES if name != "remanence.__main__"]
    arguments = [sys.executable, "-W", "ignore", "-c", WITHOUT_EXTRAS, ",".join(EXTRAS), ",".join(names)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == [f"{len(names)} tried;"], done.stdout + done.stderr[-2000:]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of one text with a memory."""
    from remanence.bank import Bank, NewChunk
    from tests.bank.helpers import FINGERPRINT, make_memory

    folder = tmp_path_factory.mktemp("imports") / "bank"
    with Bank.open(folder) as opened:
        ((id, _),) = opened.add([NewChunk("The gate's code is 4417.", num_tokens=8)])
        opened.put_memories(FINGERPRINT, [id], [make_memory(0)])
    return folder


def packages_after(arguments: list[str], folder: Path) -> tuple[int, set[str]]:
    """Exit code, and the top-level packages that a fresh process holds when the command has ended."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", COMMAND, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("packages: ")]
    return done.returncode, set(line.split()[1:])


@pytest.mark.parametrize(
    ("arguments", "code", "unused"),
    [
        (["--version"], 0, HELP | SHOWN),
        (["--help"], 0, HELP),
        (["ask", "--help"], 0, HELP),
        (["bank", "--help"], 0, HELP),
        (["bank", "list", "--help"], 0, HELP),
        (["train", "--help"], 0, HELP),
        (["eval", "--help"], 0, HELP),
        (["eval", "facts", "--help"], 0, HELP),
        (["data", "sequences", "--help"], 0, HELP),
        (["bench", "--help"], 0, HELP),
        (["doctor", "--json"], 0, (MODEL - {"safetensors"}) | OPTIONAL | SHOWN),
        (["ask", "Who?", "--bank", "none"], 2, HELP),
        (["ask", "", "--bank", "."], 2, HELP),
        (["write", "nothing.txt"], 2, HELP),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_command_imports_what_it_uses(arguments: list[str], code: int, unused: set[str], tmp_path: Path) -> None:
    left, packages = packages_after(arguments, tmp_path)
    assert left == code
    assert not packages & unused


def test_ask_prints_json_without_what_it_does_not_use(tmp_path: Path) -> None:
    from remanence.bank import Bank, NewChunk

    with Bank.open(tmp_path / "bank") as opened:
        opened.add([NewChunk("The gate's code is 4417.", num_tokens=8)])
    arguments = ["ask", "What is the gate's code?", "--model", "tiny", "--max-tokens", "2", "--json"]
    code, packages = packages_after(arguments, tmp_path)
    assert code == 0
    assert {"torch", "transformers", "pyarrow"} <= packages
    assert not packages & (SHOWN | OPTIONAL)


@pytest.mark.parametrize(
    "arguments",
    [
        ["bank", "list", "--json"],
        ["bank", "list"],
        ["bank", "stats"],
        ["bank", "search", "gate", "--kind", "lexical"],
        ["bank", "show", "0123456789abcdef"],
        ["bank", "forget", "0123456789abcdef", "--yes"],
        ["bank", "compact"],
        ["bank", "export", "texts.jsonl"],
        ["doctor", "--json"],
        ["why"],
    ],
    ids=" ".join,
)
def test_a_bank_is_looked_into_without_a_model(arguments: list[str], bank: Path) -> None:
    code, packages = packages_after(arguments, bank.parent)
    assert code == (2 if "0123456789abcdef" in arguments or "why" in arguments else 0)
    assert not packages & BANK
