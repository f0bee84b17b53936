"""Where a figure comes from: the commit of the code and the machine that it ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
LIBRARIES = ("remanence", "torch", "transformers", "lancedb")


def commit() -> str:
    """The commit of this checkout, with "+changes" where its source was changed since; else the release's version."""
    top = _git("rev-parse", "--show-toplevel")
    if top and Path(top).resolve() == PACKAGE.parent.parent:
        changed = _git("status", "--porcelain", "--", ":/src")
        return _git("rev-parse", "HEAD") + ("+changes" if changed else "")
    return f"remanence {_version('remanence')}"


def _git(*arguments: str) -> str:
    """Its output; empty where there is no git, no checkout, or no answer."""
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> dict[str, Any]:
    """Processor, cores, RAM, accelerator and versions; nothing that names its owner or its folders."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "ram_bytes": _ram_bytes(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _ram_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
