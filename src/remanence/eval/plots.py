"""Draws the results of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remanence.errors import InputError, MissingExtra

NAMES = {
    "mplus": "M+",
    "mplus_without_ltm": "M+'s pool alone",
    "sliding_window": "sliding window of text",
    "full_context": "all text in the context, while it fits",
    "memory3": "explicit memory (Memory³)",
}


def check_drawable(picture: Path) -> None:
    """MissingExtra or InputError if the picture cannot be drawn: before the measurement, rather than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("matplotlib", "train", "drawing curves") from error
    if picture.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"{str(picture)!r} is not a picture", "use a name that ends in .png, .svg or .pdf")


def draw_retention(result: dict[str, Any], picture: Path) -> None:
    """Draws exact match over tokens of other text, and below it the RAM of the process."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for name, figures in result["systems"].items():
        tokens, share = zip(*figures["curve"], strict=True)
        above.plot([t / 1000 for t in tokens], share, marker="o", markersize=3, label=NAMES.get(name, name))
        resident = [size / 2**20 for size in figures["resident_bytes"]][: len(tokens) - 1]
        below.plot([t / 1000 for t in tokens[1 : 1 + len(resident)]], resident)
    above.set_ylim(-0.02, 1.02)
    above.set_ylabel(f"exact match ({result['n']} questions)")
    above.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, fontsize="small", frameon=False)
    above.set_title(f"{result['model']}: {result['conditions']['facts']} facts, then other text", fontsize="medium")
    below.set_ylim(bottom=0)
    below.set_ylabel("RAM (MiB)")
    below.set_xlabel("thousand tokens of other text since")
    below.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
