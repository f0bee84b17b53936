"""Runs `remanence demo` in a terminal of its own and draws what it printed: docs/images/demo.svg.

The line with the seconds is left out, since they depend on the machine: so the same program draws the same picture.
Needs Linux or macOS, and a `remanence` that is installed beside this Python: `just picture`.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = Path(__file__).parent / "images" / "demo.svg"
COLUMNS, LINES = 124, 60
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
THEME = TerminalTheme(
    (13, 17, 23),
    (225, 228, 232),
    [
        (72, 79, 88),
        (255, 123, 114),
        (86, 211, 100),
        (227, 179, 65),
        (121, 192, 255),
        (210, 168, 255),
        (86, 212, 221),
        (201, 209, 217),
    ],
)


def run_demo() -> str:
    """What the demo prints on a terminal, colours included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": folder + os.pathsep + os.environ["PATH"], "TERM": "xterm-256color"}
    process = subprocess.Popen(
        ["remanence", "demo"], stdout=theirs, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        parts.append(part)
    if process.wait():
        sys.exit(f"remanence demo ended with exit code {process.returncode}")
    lines = b"".join(parts).decode().replace("\r\n", "\n").splitlines()
    return "\n".join(line for line in lines if "seconds, offline." not in line)


def draw(output: str) -> str:
    """The output as a picture of a terminal, without fonts from other servers."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "dim"), ("remanence demo", "bold")))
    console.print(Text.from_ansi(output.rstrip() + "\n"))
    frame = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    frame = frame.replace("Fira Code, monospace", FONT)
    svg = console.export_svg(title="remanence", theme=THEME, code_format=frame, unique_id="demo")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(run_demo()), encoding="utf-8")
    print(PICTURE)
