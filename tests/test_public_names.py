"""What `import remanence` promises: names that exist and are loaded only when they are used."""

from __future__ import annotations

import subprocess
import sys

import remanence


def test_every_public_name_exists():
    for name in remanence.__all__:
        assert getattr(remanence, name) is not None


def test_public_names_are_unique():
    assert len(remanence.__all__) == len(set(remanence.__all__))  # their order is ruff's business


def test_dir_shows_them():
    assert set(remanence.__all__) <= set(dir(remanence))


def test_the_first_day_is_one_import():
    assert {"Bank", "RemanenceError", "Session", "load"} <= set(remanence.__all__)


def loaded_after(code: str) -> set[str]:
    """Which of the heavy libraries a fresh interpreter holds after `code`."""
    watched = ("torch", "transformers", "lancedb", "typer")
    script = f"import sys\n{code}\nprint(*[name for name in {watched} if name in sys.modules])"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_importing_remanence_loads_nothing_heavy():
    assert loaded_after("import remanence") == set()


def test_the_model_is_used_without_lancedb_and_the_bank_without_transformers():
    assert "lancedb" not in loaded_after("import remanence; remanence.load")
    assert "transformers" not in loaded_after("import remanence; remanence.Bank")
