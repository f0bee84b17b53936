"""What a training run shows: on a terminal a bar with what is not in it above, in a pipe the lines of the log."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

CHILD = """
import sys
from pathlib import Path
from remanence.cli.watching import watching
from remanence.train.core import loop
from remanence.train.recipes.nano import nano
from tests.train.tiny_runs import begin, smaller
folder = Path(sys.argv[1])
with watching(folder, False) as watch:
    run, task = begin(folder, smaller(nano()), "warmup")
    watch(run)
    run.log_every = 2
    loop.train(run, task, 4)
    run.log({"stage": "warmup", "step": 4, "samples": [{"question": "Who?", "gold": "Ada", "answer": ""}]})
    run.log({"stage": "warmup", "step": 4, "heldout1_exact": 0.25})
"""


def shown(folder: Path) -> str:
    """What a terminal of 100 columns is sent."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", CHILD, str(folder)]
    with subprocess.Popen(command, stdout=follower, cwd=Path(__file__).parents[2], env=environment) as child:
        os.close(follower)
        sent = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end was closed
                break
            if not part:
                break
            sent += part
    os.close(leader)
    assert child.returncode == 0
    return sent.decode()


def test_a_terminal_shows_a_bar_and_above_it_what_is_no_step(tmp_path: Path) -> None:
    text = shown(tmp_path)
    assert "4/4" in text
    assert "tokens/s" in text
    assert "loss " in text
    assert "warmup 4: heldout1_exact 0.25" in text
    assert "Who? → (nothing) (Ada)" in text
    assert "loss_answer" not in text
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in lines if "loss_answer" in record] == [2, 4]


def test_a_pipe_shows_the_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    told = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    assert told == (tmp_path / "log.jsonl").read_text()
