"""What must not go to the Hub is refused before anything is sent; the upload itself goes to a small server here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from remanence.errors import InputError
from remanence.lm.folders import ASSETS
from remanence.train.export.publish import check_folder, push


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
        (write("pytorch_model.bin", ""), "'pytorch_model.bin' in .* has another suffix than .json, .safetensors"),
        (write("modeling_nano.py", ""), "has another suffix"),
        (write("log.jsonl", ""), "has another suffix"),
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


@pytest.mark.parametrize("base", ["/home/ada/models/llama", "~/llama", "./llama", "../llama", "models", "runs/llama"])
def test_an_adapter_of_a_folder_of_this_machine_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    for name in ("models", "runs/llama", "nano"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (folder / "read").mkdir()
    for fit in ("nano", "meta-llama/Llama-3.1-8B"):
        (folder / "remanence.json").write_text(json.dumps({"adapter": {"base": fit}}))
        (folder / "read" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": fit}))
        assert len(check_folder(folder)) == 6
    (folder / "read" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(InputError, match=r"'read/adapter_config.json' in .* names as its base .*, a local folder"):
        push(folder, "ada/nano")
    (folder / "read" / "adapter_config.json").unlink()
    (folder / "remanence.json").write_text(json.dumps({"adapter": {"base": base}}))
    with pytest.raises(InputError, match=r"'remanence.json' in .* names as its base .* -> upload the base too"):
        push(folder, "ada/nano")


class Hub(BaseHTTPRequestHandler):
    """As much of a Hub as an upload asks for. `private` is the model's; with `stays` its settings change nothing."""

    private, stays = True, False
    asked: ClassVar[list[str]] = []

    def answer(self) -> None:
        given = self.rfile.read(int(self.headers.get("content-length", 0)))
        path, place = self.path.partition("?")[0], f"http://{self.headers['host']}/ada/nano"
        Hub.asked.append(f"{self.command} {path}")
        status, told = 200, {"id": "ada/nano", "private": Hub.private, "sha": "0" * 40, "siblings": []}
        if path.endswith("/repos/create"):
            status, told = 409, {"error": "it is there", "url": place}
        elif "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(given)["files"]]
            told = {"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]}
        elif "/commit/" in path:
            told = {"commitUrl": f"{place}/commit/0", "commitOid": "0" * 40, "success": True}
        elif path.endswith("/settings") and not Hub.stays:
            settings = json.loads(given)
            Hub.private = settings.get("private", settings.get("visibility") == "private")
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def log_message(self, *told: object) -> None:
        pass


@pytest.mark.parametrize(
    ("options", "stays", "code", "is_private"),
    [([], False, 0, True), (["--public"], False, 0, False), (["--public"], True, 2, True)],
)
def test_public_is_said_of_a_model_that_is(
    folder: Path, options: list[str], stays: bool, code: int, is_private: bool
) -> None:
    """Of one that is there already and private: it is made public, or said to have stayed what it was."""
    Hub.private, Hub.stays = True, stays
    Hub.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_address[1]}"
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": place, "HF_TOKEN": "none"}
        command = [sys.executable, "-m", "remanence", "push", str(folder), "ada/nano", "--json", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == code, (done.stderr, Hub.asked)
    assert Hub.private is is_private
    assert any("/commit/" in asked for asked in Hub.asked), Hub.asked
    if code:
        assert "ada/nano is uploaded, but it is still private" in done.stderr
    else:
        assert json.loads(done.stdout)["public"] is not is_private


def test_names_and_folders_that_are_none_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("nano", "a/b/c", "", "ada/na no"):
        with pytest.raises(InputError, match="is not the name of a model on the Hub"):
            push(folder, name)
    with pytest.raises(InputError, match="there is no folder"):
        push(tmp_path / "nothing", "ada/nano")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, so nothing is uploaded"):
        push(folder, "ada/nano")


def test_a_hub_that_cannot_be_reached_is_one_line_and_code_2(folder: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "none"}
    command = [sys.executable, "-m", "remanence", "push", str(folder), "ada/nano"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "ada/nano could not be uploaded: " in line
