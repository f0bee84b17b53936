"""`remanence write`: files, folders or standard input into the bank."""

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remanence.cli import options as o
from remanence.cli.opening import open_session
from remanence.cli.terminal import fail, print_json, progress, say, warn
from remanence.errors import InputError

if TYPE_CHECKING:
    from remanence.text.documents import Problem
    from remanence.types import Receipt

SHOWN = 5
"""So many files that are passed over are named, the others counted."""


def write(
    paths: Annotated[list[str] | None, typer.Argument(help="txt, md, jsonl, html, pdf; folders; - is stdin.")] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Store text only; memories are made when recalled.")] = False,
    source: Annotated[str, typer.Option("--source", metavar="NAME", help="What standard input is called.")] = "stdin",
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Remember documents.

    One bad file does not lose the others: it is reported, and the exit code is 2.
    """
    from remanence.text.documents import read_documents

    problems: list[Problem] = []
    stdin = not paths and not sys.stdin.isatty()
    if not (paths or stdin):
        raise InputError("there is nothing to write", "give a PATH, or pipe text in")
    read = read_documents(paths or [], stdin=stdin, on_problem=problems.append)
    documents = (replace(document, source=source) if document.source == "stdin" else document for document in read)
    first = next(documents, None)  # before the model is loaded: a wrong path answers at once
    receipt = None
    if first:
        with open_session(bank, namespace, model, method, seed, new=True) as session, progress("Writing") as advance:
            everything = itertools.chain([first], documents)
            receipt = session.write_documents(everything, warm=not cold, on_progress=advance)
    _report(receipt, problems, str(bank), as_json)
    if any(problem.failed for problem in problems) or not receipt:
        raise typer.Exit(2)


def _report(receipt: Receipt | None, problems: list[Problem], bank: str, as_json: bool) -> None:
    _complain(problems)
    if as_json:
        found = [{"path": p.path, "message": str(p.error), "failed": p.failed} for p in problems]
        print_json({"receipt": receipt and _numbers(receipt), "problems": found})
    elif receipt:
        say(*_summary(receipt, bank))
    elif not problems:
        fail("there is nothing to write -> the folder holds no file that can be read")


def _complain(problems: list[Problem]) -> None:
    for problem in problems:
        if problem.failed:
            fail(str(problem.error))
    passed_over = [problem for problem in problems if not problem.failed]
    for problem in passed_over[:SHOWN]:
        warn(str(problem.error))
    if len(passed_over) > SHOWN:
        warn(f"{len(passed_over) - SHOWN:,} more files are passed over")


def _numbers(receipt: Receipt) -> dict[str, Any]:
    return asdict(receipt) | {"num_chunks": receipt.num_chunks}


def _summary(receipt: Receipt, bank: str) -> list[str]:
    num_new = len(set(receipt.ids) - set(receipt.skipped))
    known = f", {len(receipt.skipped):,} known already" if receipt.skipped else ""
    return [
        f"Remembered {num_new:,} new memories from {receipt.num_documents:,} documents{known}",
        f" ({receipt.num_tokens:,} tokens, {receipt.num_bytes / 1e6:.1f} MB, {receipt.seconds:.1f} s) in {bank}",
    ]
