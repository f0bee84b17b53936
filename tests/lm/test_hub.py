"""A model of the Hub comes with what stands beside its weights, out of the cache that Hugging Face's library keeps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from remanence.lm.lm import ASSETS

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
