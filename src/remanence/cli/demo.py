"""`remanence demo`: writes the project's own documents, asks with and without memory, forgets, says what is next."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remanence.cli import options as o
from remanence.cli.opening import open_session
from remanence.cli.terminal import clean, note, one_line, out, print_json, progress, say, table
from remanence.eval.metrics import best, exact_match

if TYPE_CHECKING:
    from remanence.session import Session
    from remanence.types import Reply

MAX_TOKENS = 16
"""Longer than the longest expected answer."""
WIDEST = 130
"""Columns of the table on a wide terminal."""


@dataclass(frozen=True)
class Question:
    """What the documents answer, compared as `remanence eval` does; `also` are other wordings of the same answer."""

    question: str
    expected: str
    also: tuple[str, ...] = ()

    def is_answered_by(self, text: str) -> bool:
        return best(exact_match, text, (self.expected, *self.also)) == 1.0


def demo(
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank", metavar="FOLDER", help="Keep the demo's memories in this bank. Without it, the bank is temporary."
        ),
    ] = None,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Store a few documents, ask about them with and without memory, and forget one."""
    begun = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(as_file(files("remanence") / "assets" / "demo"))
        where = bank or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))) / "bank"
        session = stack.enter_context(open_session(where, namespace, model, method, seed, new=True))
        rows, written = run(session, folder)
        result = summary(rows)
        forgotten = None if bank else forget_one(session, rows)
    result |= {"written": written, "forgotten": forgotten, "seconds": round(time.monotonic() - begun, 2)}
    if as_json:
        print_json(result)
    else:
        _show(result, session.lm.name, bank, method)


def run(session: Session, folder: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Writes the folder's documents and asks its questions, each with memory and without."""
    from remanence.text.documents import read_documents

    asked = [Question(**fields) for fields in json.loads((folder / "questions.json").read_text(encoding="utf-8"))]
    with progress("Writing documents") as advance:
        receipt = session.write_documents(read_documents([folder]), on_progress=advance)
    prompts = [question.question for question in asked]
    with progress("Asking", total=2 * len(asked)) as advance:
        replies = []
        for recall in (True, False):
            for prompt in prompts:
                replies.append(session.generate(prompt, max_tokens=MAX_TOKENS, recall=recall))
                advance(1)
    pairs = zip(asked, replies[: len(asked)], replies[len(asked) :], strict=True)
    rows = [_row(question, reply, plain) for question, reply, plain in pairs]
    return rows, {"documents": receipt.num_documents, "memories": receipt.num_chunks}


def _row(question: Question, reply: Reply, plain: Reply) -> dict[str, Any]:
    return {
        "question": question.question,
        "expected": question.expected,
        "answer": reply.text,
        "correct": question.is_answered_by(reply.text),
        "recalled": [asdict(recall) for recall in reply.recalled],
        "answer_without_memory": plain.text,
        "correct_without_memory": question.is_answered_by(plain.text),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "accuracy": sum(row["correct"] for row in rows) / len(rows),
        "accuracy_plain": sum(row["correct_without_memory"] for row in rows) / len(rows),
        "questions": rows,
    }


def forget_one(session: Session, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Forgets what the last right answer came from, and asks again."""
    row = next((row for row in reversed(rows) if row["correct"] and row["recalled"]), None)
    if row is None:
        return None
    best = max(row["recalled"], key=lambda recall: (row["expected"] in recall["text"], recall["score"]))
    receipt = session.forget(best["id"])
    reply = session.generate(row["question"], max_tokens=MAX_TOKENS)
    return {
        "id": best["id"],
        "exact": receipt.exact,
        "question": row["question"],
        "answer_before": row["answer"],
        "answer": reply.text,
        "recalled": [asdict(recall) for recall in reply.recalled],
    }


def _show(result: dict[str, Any], model: str, bank: Path | None, method: str) -> None:
    from rich.text import Text

    rows, written = result["questions"], result["written"]
    say(f"{model} read {written['documents']} short documents and keeps {written['memories']} memories of them.\n")
    short = {"no_wrap": True, "overflow": "ellipsis"}
    columns = [
        ("question", 10, {}),
        ("with memory", 6, short),
        ("source", 5, short),
        ("without memory", 5, short),
    ]
    shown = table("", *((name, {"ratio": ratio, **more}) for name, ratio, more in columns))
    shown.expand, shown.width = True, min(out().width, WIDEST)
    for row in rows:
        mark = Text("✓", style="bold green") if row["correct"] else Text("✗", style="bold red")
        sources = [Path(recall["source"]).name for recall in row["recalled"][:1]]
        shown.add_row(
            mark,
            Text(row["question"]),
            Text(one_line(row["answer"]), style="green" if row["correct"] else "red"),
            Text(one_line(sources[0]) if sources else "nothing", style="cyan"),
            Text(one_line(row["answer_without_memory"]), style="dim"),
        )
    out().print(shown)
    right, plain = (sum(row[key] for row in rows) for key in ("correct", "correct_without_memory"))
    say("\nRight with memory ", (f"{right} of {len(rows)}", "bold green"), f", without {plain} of {len(rows)}.")
    _show_forgotten(result["forgotten"])
    say((f"{result['seconds']:.1f} seconds, offline.\n", "dim"))
    _show_next(bank, method)


def _show_forgotten(forgotten: dict[str, Any] | None) -> None:
    if forgotten:
        recalled = "nothing recalled" if not forgotten["recalled"] else "other memories recalled"
        say(
            f"\nThen one memory was forgotten. {forgotten['question']} ",
            (one_line(forgotten["answer_before"], 40), "green"),
            " became ",
            (one_line(clean(forgotten["answer"]), 40) or "no answer", "yellow"),
            (f" ({recalled}).", "dim"),
        )


def _show_next(bank: Path | None, method: str) -> None:
    how = f" --method {shlex.quote(method)}" if method != o.METHOD else ""
    where = f" --bank {shlex.quote(str(bank))}" if bank else ""
    started = Path(sys.argv[0])  # outside the environment, "remanence" alone would not be found
    known = started.stem != "remanence" or shutil.which("remanence")
    program = "remanence" if known else shlex.quote(str(started))
    say(("Now with your own files:", "bold"))
    lines = (
        (f"{program} write PATH{where}{how}", "remember a file, or a folder"),
        (f'{program} ask "..."{where}{how}', "ask about it"),
        (f"{program} why{where}", "see what the answer came from"),
    )
    width = max(len(command) for command, _ in lines)
    for command, meaning in lines:
        say((f"  {command:<{width}}  ", "cyan"), (meaning, "dim"))
    if bank:
        note(f"the demo's memories stay in {bank}")
