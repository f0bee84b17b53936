"""The newest torch and transformers that the whole test suite has passed with; a newer one gets a longer proof."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
import transformers
from packaging.version import Version

TESTED = {"torch": "2.13", "transformers": "5.24"}
"""The newest minor versions; the upper bounds in the package's metadata are the next ones."""


class UntestedVersion(UserWarning):
    """A library is newer than any that was tested; models are proved more thoroughly when they are loaded."""


def untested(installed: Mapping[str, str] | None = None) -> str:
    """The libraries that are newer than TESTED, with both versions, in words; empty where there are none."""
    installed = installed or {"torch": torch.__version__, "transformers": transformers.__version__}
    newer = [name for name, tested in TESTED.items() if Version(installed[name]).release[:2] > Version(tested).release]
    return ", ".join(f"{name} {installed[name]} (tested up to {TESTED[name]})" for name in newer)


def warn_of(newer: str, model: str) -> None:
    """One line that names what is untested and that `model` was proved with more tokens and on every path."""
    message = f"newer than any version tested: {newer}; {model!r} has passed a longer proof than usual"
    warnings.warn(message, UntestedVersion, stacklevel=3)
