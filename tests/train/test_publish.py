"""What must not go to the Hub is refused before anything is sent; the upload itself needs a Hub and is not tried."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remanence.errors import InputError
from remanence.lm.lm import ASSETS
from remanence.train.publish import check_folder, push


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "added_tokens.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: unknown\n---\n# a model\n")
    return folder


@pytest.mark.parametrize("name", ["nano", "nano-mplus"])
def test_the_bundled_models_may_go(name: str) -> None:
    assert {path.name for path in check_folder(ASSETS / name)} >= {"README.md", "remanence.json"}


def write(name: str, text: str) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return put


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (write("pytorch_model.bin", ""), "'pytorch_model.bin' in .* is none of .json, .safetensors"),
        (write("modeling_nano.py", ""), "is none of"),
        (write("log.jsonl", ""), "is none of"),
        (write("warmup/progress.json", "{}"), "'warmup/progress.json' in .* belongs to a training run"),
        (write("run.json", "[]"), "belongs to a training run"),
        (write("token.txt", ""), "looks like a secret"),
        (write("settings.json", '{"login": "hf_' + "a" * 34 + '"}'), "looks like a secret"),
        (write("notes.md", "-----BEGIN OPENSSH PRIVATE KEY-----"), "looks like a secret"),
        (write(".env.json", "{}"), "is hidden"),
        (write(".git/config.json", "{}"), "is hidden"),
        (lambda folder: (folder / "more.json").symlink_to("/etc/hostname"), "is a link"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "README.md").unlink(), "has no model card"),
        (write("README.md", "# no metadata"), "has no model card"),
    ],
)
def test_what_must_not_go_is_refused(folder: Path, spoil: Callable[[Path], object], said: str) -> None:
    assert len(check_folder(folder)) == 4
    spoil(folder)
    with pytest.raises(InputError, match=said):
        push(folder, "ada/nano")


def test_names_and_folders_that_are_none_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("nano", "a/b/c", "", "ada/na no"):
        with pytest.raises(InputError, match="is no name of a model on the Hub"):
            push(folder, name)
    with pytest.raises(InputError, match="there is no folder"):
        push(tmp_path / "nothing", "ada/nano")
    with pytest.raises(InputError, match="nothing is sent while HF_HUB_OFFLINE is set"):
        push(folder, "ada/nano")


def test_a_hub_that_cannot_be_reached_is_one_line_and_code_2(folder: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "none"}
    command = [sys.executable, "-m", "remanence", "push", str(folder), "ada/nano"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "ada/nano could not be uploaded: " in line
