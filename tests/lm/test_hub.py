"""A model of the Hub comes with what stands beside its weights, out of the cache that Hugging Face's library keeps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from remanence.lm.folders import ASSETS

ASKED = """
import sys
from remanence.lm import hub
try:
    print(hub.beside(sys.argv[1]))
except hub.InputError as error:
    print(error)
"""
CHILD = """
import sys
import remanence as rm
lm = rm.load(sys.argv[1])
print(lm.name, lm.settings, lm.embedder is not None, lm.latent is not None)
"""


def cached(home: Path, name: str, folder: Path) -> None:
    """Lays a folder into the cache as a download of `name` would have."""
    place = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / "0123")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123")


def loaded(home: Path, name: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", CHILD, name], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("model", "has_latent"), [("nano", False), ("nano-mplus", True)])
def test_settings_head_and_adapters_come_with_it(tmp_path: Path, model: str, has_latent: bool) -> None:
    cached(tmp_path, f"someone/{model}", ASSETS / model)
    done = loaded(tmp_path, f"someone/{model}")
    assert done.returncode == 0, done.stderr
    settings = json.loads((ASSETS / model / "remanence.json").read_text())
    assert done.stdout.strip() == f"someone/{model} {settings} True {has_latent}"


def test_a_model_that_is_not_cached_is_named(tmp_path: Path) -> None:
    done = loaded(tmp_path, "someone/nothing")
    assert "InputError: model 'someone/nothing' cannot be loaded" in done.stderr


@pytest.mark.parametrize("status", [401, 403, 501, 404])
def test_only_what_the_hub_says_is_missing_is_missing(tmp_path: Path, status: int) -> None:
    """The weights are cached, their settings are not: to load them with other settings would be silently wrong."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    cached(tmp_path, "someone/bare", bare)

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", "EntryNotFound" if status == 404 else "GatedRepo")
            self.end_headers()

        def log_message(self, *told: object) -> None:
            pass

    def asked(offline: str, place: str) -> str:
        variables = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": offline, "HF_ENDPOINT": place}
        command = [sys.executable, "-c", ASKED, "someone/bare"]
        return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True).stdout.strip()

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_address[1]}"
        found, alone = asked("0", place), asked("1", place)
        server.shutdown()
    assert alone == "None", "offline the cache is all there is"
    if status == 404:
        assert found == "None"
    else:
        assert found.startswith("whether someone/bare has a remanence.json cannot be told: ")
