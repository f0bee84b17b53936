"""The card of a model that a run has made: how it reads memory, how it was trained, what was measured on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from remanence.train.curves import read_log
from remanence.train.folder import entries
from remanence.train.loop import Run

CARD = "README.md"
PROGRESS = frozenset(
    "step stage seconds tokens tokens_per_second tflops_per_second mfu spikes norm slots phase rate bytes".split()
)
"""What is in the log and is no figure of a model."""


def write_card(folder: Path, run: Run, recipe: Any, memory: Mapping[str, Any], tags: Sequence[str] = ()) -> None:
    """`folder/README.md` out of the run's log and `run.json`; one that is there is left alone.

    `memory`: what the model reads memory by, name -> value, its `method` among them. The licence is left open: it is
    for whoever owns the weights to choose.
    """
    if (folder / CARD).exists():
        return
    name, made = run.folder.resolve().name, entries(run.folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    parts = [
        _metadata(tags),
        f"# {name}\n\nA language model with long-term memory, made by remanence: {size / 1e6:,.1f} MB on disk.",
        f"## Memory\n\n{_table(('setting', 'value'), ((key, json.dumps(value)) for key, value in memory.items()))}",
        LOADING.replace("METHOD", str(memory["method"])),
        f"## How it was trained\n\n{_training(run.folder, made)}",
        f"## What was measured while it was trained\n\n{_figures(run.folder)}",
        f"## Recipe\n\n```json\n{json.dumps(asdict(recipe), indent=1)}\n```",
    ]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def described_stage(folder: Path) -> str | None:
    """The stage of the recipe that `folder`'s card shows; None where there is no card, or it shows none."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    try:
        found = json.loads(text.partition("```json\n")[2].partition("```")[0])
    except ValueError:
        return None
    return found.get("stage") if isinstance(found, dict) else None


LOADING = """## How to load it

```python
import remanence as rm

lm = rm.load("FOLDER")  # this folder, or its Hub id OWNER/NAME
session = rm.Session(lm, "bank", "METHOD")
```

`remanence ask "..." --model FOLDER --method METHOD` asks it on the command line."""


def _metadata(tags: Sequence[str]) -> str:
    """`unknown` is what the Hub calls a licence that nobody has named."""
    told = ", ".join(("long-term-memory", *tags))
    return f"---\nlicense: unknown\nlibrary_name: remanence\npipeline_tag: text-generation\ntags: [{told}]\n---"


def _training(folder: Path, made: Sequence[Mapping[str, Any]]) -> str:
    """Steps, tokens and seconds of every stage as the log has them; where and on what, as `run.json` has it."""
    rows = []
    for stage, records in _log(folder).items():
        told = _newest(records)
        if "tokens_per_second" in told:
            rows.append((stage, *(f"{told[name]:,}" if name in told else "" for name in ("step", "tokens", "seconds"))))
    lines = [_table(("stage", "steps", "tokens", "seconds"), rows)]
    if made:
        last = made[-1]
        machine = ", ".join(str(last["machine"][part]) for part in ("gpu", "cpu") if last["machine"].get(part))
        versions = ", ".join(f"{part} {last['machine'].get(part)}" for part in ("python", "torch", "transformers"))
        data = ", ".join(sorted({name for entry in made for name in entry["data"]})) or "what remanence generates"
        lines += [
            f"Commit {', '.join(dict.fromkeys(entry['commit'] for entry in made))}; {last['processes']} "
            f"{'process' if last['processes'] == 1 else 'processes'} ({machine}); {versions}; seed {last['seed']}.",
            f"Data: {data}.",
        ]
        if any(entry["given_weights"] for entry in made):
            lines.append("It did not begin from nothing: weights of another model were given.")
    return "\n\n".join(lines)


def _figures(folder: Path) -> str:
    """The newest value of every figure of every stage."""
    rows = []
    for stage, records in _log(folder).items():
        told = _newest(records).items()
        numbers = [(key, value) for key, value in told if isinstance(value, int | float) and key not in PROGRESS]
        rows += [(stage, f"`{key}`", f"{value:g}") for key, value in numbers]
    told = "The newest value of each; `loss` is in nats per token, `exact` and `token` are shares of held-out answers."
    return f"{told}\n\n{_table(('stage', 'figure', 'value'), rows)}"


def _log(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    log = folder / "log.jsonl"
    return read_log(log) if log.exists() else {}


def _newest(records: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for _, record in sorted(records.items()) for key, value in record.items()}


def _table(heads: Sequence[str], rows: Any) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
