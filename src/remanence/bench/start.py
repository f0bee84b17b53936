"""What a command costs before it does anything: seconds of fresh processes, and the packages that they import."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.measurement import Advance, MeasurementOptions, envelope

TEXT = "The keeper of the lighthouse is Odile Marsh."
QUESTION = "Who is the keeper of the lighthouse?"
SOURCE = Path(__file__).resolve().parents[2]
"""The folder that this `remanence` is imported from."""
BASELINES = {"python": "pass", "import torch": "import torch", "import transformers": "import transformers"}
"""What no command can be quicker than, if it imports them."""
NUM_PACKAGES = 12
"""The packages that cost most are listed, the others counted together."""
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


@dataclass(frozen=True)
class Options(MeasurementOptions):
    """`repeats` fresh processes of each command. `against`: a folder that holds another version's `remanence`."""

    repeats: int = 5
    model: str = "nano"
    against: Path | None = None

    @property
    def num_processes(self) -> int:
        return self.repeats * (len(commands(Path(), "")) * (2 if self.against else 1) + len(BASELINES))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against and not (self.against / "remanence" / "__main__.py").is_file():
            raise InputError(f"{str(self.against)!r} holds no package remanence", "give the folder src of a checkout")


@dataclass(frozen=True)
class Cost:
    """Of one process: wall seconds, and CPU seconds of all its threads (None where the system does not say)."""

    seconds: float
    cpu_seconds: float | None


def commands(bank: Path, model: str) -> dict[str, list[str]]:
    """The commands that are measured, by their name in the result."""
    place = ["--bank", str(bank)]
    return {
        "ask": ["ask", QUESTION, "--model", model, *place, "--json"],
        "bank list": ["bank", "list", *place, "--json"],
        "--help": ["--help"],
        "doctor --json": ["doctor", "--model", model, *place, "--json"],
    }


def run(options: Options, on_process: Advance = lambda processes: None) -> dict[str, Any]:
    """Every command and baseline in turn, `repeats` times; each figure is the median."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bank = Path(folder) / "bank"
        _fill(bank, options.model)
        arguments = {
            **{name: ["-m", "remanence", *rest] for name, rest in commands(bank, options.model).items()},
            **{name: ["-c", code] for name, code in BASELINES.items()},
        }
        costs = _measure(arguments, options, on_process)
        packages = {name: imports(rest) for name, rest in arguments.items() if name not in BASELINES}
    results = {name: _figures(each["new"]) for name, each in costs.items()}
    ratios: dict[str, float] = {}
    if options.against:
        for name in packages:
            results[f"{name} (against)"] = _figures(costs[name]["against"])
            ratios[f"{name}_new_over_against"] = _ratio(costs[name], lambda cost: cost.seconds)
            ratios[f"{name}_cpu_new_over_against"] = _ratio(costs[name], lambda cost: cost.cpu_seconds or cost.seconds)
    load = {"load_average": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}
    conditions = {"model": options.model, "repeats": options.repeats, **load}
    return envelope("bench", "start", results, conditions=conditions, ratios=ratios, imports=packages)


def imports(arguments: Sequence[str], source: Path = SOURCE) -> dict[str, float]:
    """Seconds that `python ARGUMENTS` spends on imports, by top-level package, those that cost most first.

    What Python loads for one package inside of another counts for its own package.
    """
    done = _process(["-X", "importtime", *arguments], source)
    if done.returncode:
        raise InputError(f"`python {' '.join(arguments[:3])}` fails", done.stderr.strip().splitlines()[-1])
    micros: dict[str, int] = {}
    for found in _LINE.finditer(done.stderr):
        package = found[2].partition(".")[0]
        package = "standard library" if package in sys.stdlib_module_names else package
        micros[package] = micros.get(package, 0) + int(found[1])
    ordered = sorted(micros, key=lambda package: -micros[package])
    shown = {package: micros[package] / 1e6 for package in ordered[:NUM_PACKAGES]}
    others = sum(micros[package] for package in ordered[NUM_PACKAGES:]) / 1e6
    return shown | ({"others": others} if others else {}) | {"all": sum(micros.values()) / 1e6}


def _measure(
    arguments: Mapping[str, Sequence[str]], options: Options, on_process: Advance
) -> dict[str, dict[str, list[Cost]]]:
    """Costs by command and version. Versions take turns, so that what slows the machine down slows both."""
    sources = {"new": SOURCE, **({"against": options.against} if options.against else {})}
    costs: dict[str, dict[str, list[Cost]]] = {name: {version: [] for version in sources} for name in arguments}
    for _ in range(options.repeats):
        for name, rest in arguments.items():
            for version in ["new"] if name in BASELINES else sources:
                costs[name][version].append(_cost(rest, sources[version] or SOURCE))
                on_process(1)
    return costs


def _cost(arguments: Sequence[str], source: Path) -> Cost:
    before, begun = _cpu_of_children(), time.perf_counter()
    done = _process(arguments, source)
    seconds, after = time.perf_counter() - begun, _cpu_of_children()
    if done.returncode:
        raise InputError(f"`python {' '.join(arguments[:3])}` fails", done.stderr.strip().splitlines()[-1])
    return Cost(seconds, None if before is None or after is None else after - before)


def _cpu_of_children() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _process(arguments: Sequence[str], source: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)


def _fill(bank: Path, model: str) -> None:
    from remanence.session import Session

    with Session(model, bank) as session:
        session.write(TEXT, "lighthouse.txt")


def _figures(costs: Sequence[Cost]) -> dict[str, float | None]:
    cpu = [cost.cpu_seconds for cost in costs if cost.cpu_seconds is not None]
    return {
        "seconds": statistics.median(cost.seconds for cost in costs),
        "cpu_seconds": statistics.median(cpu) if cpu else None,
    }


def _ratio(costs: Mapping[str, Sequence[Cost]], figure: Callable[[Cost], float]) -> float:
    """Median over the pairs that ran one after the other."""
    pairs = zip(costs["new"], costs["against"], strict=True)
    return statistics.median(figure(new) / figure(old) for new, old in pairs)
