"""The checks of `remanence doctor`; each gives a line with a state and what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from remanence.errors import RemanenceError

if TYPE_CHECKING:
    from remanence.lm.lm import LM

State = Literal["ok", "warn", "bad"]
LOW_DISK_BYTES = 1 << 30
EXTRAS = {"pypdf": ("pdf", "reading PDF files"), "sentence_transformers": ("embed", "other embedding models")}


@dataclass(frozen=True)
class Check:
    """One line of the report. `fix` says what to do; it is "" where nothing is wrong."""

    name: str
    state: State
    message: str
    fix: str = ""


class Described(Protocol):
    """A model as its files or its `LM` describe it."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> dict[str, Any]: ...


def environment(deep: bool = False) -> Iterator[Check]:
    """Python, and the packages that remanence needs, against the version ranges that it allows. `deep`: loads torch."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, wanted in _requirements().items():
        yield _package(name, wanted)
    yield _device() if deep else Check("device", "ok", f"{os.cpu_count()} cores; --deep says what torch computes on")


def _requirements() -> dict[str, Any]:
    """Name to version range; {} where remanence runs from a folder that was never installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("remanence") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    parsed = [Requirement(line) for line in lines]
    return {each.name: each.specifier for each in parsed if not (each.marker and "extra" in str(each.marker))}


def _package(name: str, wanted: Any) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "bad", "is not installed", f"pip install '{name}{wanted}'")
    if not wanted.contains(version, prereleases=True):
        return Check(name, "bad", f"{version} is outside {wanted}", f"pip install '{name}{wanted}'")
    return Check(name, "ok", version)


def _device() -> Check:
    try:
        import torch
    except Exception as error:  # a broken binary fails in many ways
        return Check("device", "bad", f"torch does not load: {error}", "reinstall torch for this machine")
    if torch.cuda.is_available():
        return Check("device", "ok", f"{torch.cuda.get_device_name()} with CUDA {torch.version.cuda}")
    return Check("device", "ok", f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores")


def extras() -> Iterator[Check]:
    for module, (extra, need) in EXTRAS.items():
        if importlib.util.find_spec(module):
            yield Check(f"extra {extra}", "ok", f"{need}: installed")
        else:
            yield Check(f"extra {extra}", "ok", f"{need}: not installed; if needed `pip install '.[{extra}]'`")


def disk(bank: Path) -> Iterator[Check]:
    place = next(folder for folder in (bank.absolute(), *bank.absolute().parents) if folder.is_dir())
    free_bytes = shutil.disk_usage(place).free
    low = free_bytes < LOW_DISK_BYTES
    fix = "free some space, or put the bank elsewhere with --bank" if low else ""
    yield Check("disk", "warn" if low else "ok", f"{free_bytes / 1e9:.1f} GB free at {place}", fix)
    if not os.access(place, os.W_OK):
        yield Check("permissions", "bad", f"{place} cannot be written to", "choose another folder with --bank")


def model_files(name: str) -> tuple[Described | None, list[Check]]:
    """What the model's files say, and whether they are all there and whole; the model is not loaded."""
    from remanence.cli.model_files import read

    try:
        found = read(name)
    except RemanenceError as error:
        return None, [Check("model", "bad", error.message, error.hint)]
    not_run = "memory test and match with the bank: not run; `remanence doctor --deep` loads the model and runs them"
    return found, [Check("model", "ok", found.summary), Check("deep checks", "ok", not_run)]


def model(name: str) -> tuple[LM | None, list[Check]]:
    """The model, if it loads and passes the memory test, and the checks on the way."""
    try:
        from remanence.lm.load import load

        lm = load(name)
    except RemanenceError as error:
        return None, [Check("model", "bad", error.message, error.hint)]
    except Exception as error:
        reason = f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
        return None, [Check("model", "bad", reason, f"`remanence --debug ask ... --model {name}` shows where it fails")]
    dims = lm.dims
    size = f"{lm.name}: {dims.num_layers} layers, width {dims.width}, {dims.max_positions} positions, {lm.dtype}"
    search = "its own search vectors" if lm.embedder else "none of its own, searches by BM25 alone"
    return lm, [
        Check("model", "ok", size),
        Check("memory test", "ok", "passed: memory equals the text in context"),
        Check("fingerprint", "ok", lm.fingerprint[:16]),
        Check("embedder", "ok", search),
    ]


def training(model: Described | None, method: str) -> Iterator[Check]:
    """Whether the model's settings say that it was trained to read what `method` keeps; "dense" needs no training."""
    name, _, preset = method.partition(":")
    if model is None or name != "memory3" or preset == "dense":
        return
    from remanence.lm.folders import SETTINGS

    if name in model.settings:
        yield Check("training", "ok", f"{model.name} was trained to read memories ({SETTINGS})")
    else:
        reason = f"nothing says that {model.name} was trained to read sparse memories (it has no {SETTINGS})"
        yield Check(
            "training", "warn", reason, "`--method memory3:dense` or retrieved_text, unless you know that it was"
        )


def bank(path: Path, namespace: str, lm: LM | None, method: str) -> Iterator[Check]:
    if not path.exists():
        yield Check("bank", "ok", f"none at '{path}' yet", "`remanence write PATH` makes one")
        return
    try:
        from remanence.bank import Bank

        with Bank.open(path, namespace=namespace) as opened:
            held = f"{len(opened):,} chunks of namespace {namespace!r} in {path}, format {opened.stats().format}"
            yield Check("bank", "ok", held)
            yield from _verified(opened)
        if lm is not None:
            yield _matches(path, namespace, lm, method)
    except RemanenceError as error:
        yield Check("bank", "bad", error.message, error.hint)
    except Exception as error:
        reason = f"{path}: {type(error).__name__}: {' '.join(str(error).split())}"
        yield Check(
            "bank",
            "bad",
            reason,
            f"`remanence bank verify --bank {shlex.quote(str(path))}`, or restore it from a backup",
        )


def _verified(opened: Any) -> Iterator[Check]:
    from remanence.bank.pool_files import remedy

    report = opened.verify(decode=False)
    if report.ok:
        counted = f"{report.num_files:,} files and {report.num_memories:,} memories are as they were written"
        yield Check("bank contents", "ok", counted)
    for problem in report.problems:
        yield Check("bank contents", "bad", problem, remedy([problem]))


def _matches(path: Path, namespace: str, lm: LM, method: str) -> Check:
    from remanence.session import Session

    try:
        with Session(lm, path, method, namespace=namespace):
            return Check("bank matches", "ok", f"its memories are of {lm.name} with {method}, or can be made")
    except RemanenceError as error:
        return Check("bank matches", "bad", error.message, error.hint)
