"""`remanence write`: files, folders or standard input into the bank."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remanence.cli import options as o
from remanence.cli.opening import open_session
from remanence.cli.terminal import counted, fail, print_json, progress, say, warn
from remanence.errors import InputError

if TYPE_CHECKING:
    from remanence.session import Session
    from remanence.text.documents import Document, Problem
    from remanence.types import Receipt

SHOWN = 5
"""The number of skipped files that are named; the others are only counted."""
UNIT_SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def write(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files (txt, md, jsonl, html, pdf) and folders; - is standard input.")
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Store the texts only; a memory is computed when it is first recalled.")
    ] = False,
    source: Annotated[
        str, typer.Option("--source", metavar="NAME", help="The source name of text from standard input.")
    ] = "stdin",
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires", metavar="WHEN", help="Not recalled after this time: 7d, 12h, 30m from now, or 2030-01-31."
        ),
    ] = None,
    supersedes: Annotated[
        str | None,
        typer.Option(
            "--supersedes", metavar="ID", help="The memory that this document replaces; for one document only."
        ),
    ] = None,
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Store documents and compute their memories.

    A file that cannot be read is reported, the others are stored, and the exit code is 2.
    """
    from remanence.text.documents import read_documents

    problems: list[Problem] = []
    stdin = not paths and not sys.stdin.isatty()
    if not (paths or stdin):
        raise InputError("there is nothing to write", "give a PATH, or pipe text in")
    until = None if expires is None else _time(expires)
    read = read_documents(paths or [], stdin=stdin, on_problem=problems.append)
    documents = (replace(document, source=source) if document.source == "stdin" else document for document in read)
    first = list(itertools.islice(documents, 2))  # before the model is loaded: a wrong path answers at once
    if supersedes is not None and len(first) > 1:
        raise InputError(f"several documents cannot supersede {supersedes!r}", "give one document with --supersedes")
    receipt = None
    if first:
        with open_session(bank, namespace, model, method, seed, new=True) as session, progress("Writing") as advance:
            everything = itertools.chain(first, documents)
            if until is not None or supersedes is not None:
                known = {"expires": until, "supersedes": supersedes, "warm": not cold}
                receipt = _write_each(session, everything, advance, **known)
            else:
                receipt = session.write_documents(everything, warm=not cold, on_progress=advance)
    _report(receipt, problems, str(bank), as_json)
    if any(problem.failed for problem in problems) or not receipt:
        raise typer.Exit(2)


def _time(given: str) -> float:
    """Seconds since 1970 of a time from now (7d) or of a date, local unless it names its zone."""
    try:
        if length := re.fullmatch(r"([0-9]{1,6})([mhdw])", given):
            seconds = time.time() + int(length[1]) * UNIT_SECONDS[length[2]]
        else:
            seconds = datetime.fromisoformat(given).timestamp()
    except (ValueError, OverflowError, OSError):
        hint = "give a length such as 7d, 12h or 30m, or a date such as 2030-01-31"
        raise InputError(f"--expires {given!r} is not a time", hint) from None
    if seconds <= time.time():
        raise InputError(f"--expires {given!r} is in the past", "give a time that is still to come")
    return seconds


def _write_each(
    session: Session, documents: Iterable[Document], advance: Callable[[int], None], **known: Any
) -> Receipt:
    """One by one, since expiry and what is superseded belong to a single text; their receipts as one."""
    receipts = []
    for document in documents:
        receipts.append(session.write(document.text, document.source, metadata=document.metadata, **known))
        advance(receipts[-1].num_chunks)
    total = receipts[0]
    for receipt in receipts[1:]:
        total = replace(
            total,
            **{field.name: getattr(total, field.name) + getattr(receipt, field.name) for field in fields(total)},
        )
    return total


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
    joined = f", {receipt.merged:,} short ones read together" if receipt.merged else ""
    return [
        f"Remembered {counted(num_new, 'new memory', 'new memories')}"
        f" from {counted(receipt.num_documents, 'document', 'documents')}{known}{joined}",
        f" ({receipt.num_tokens:,} tokens, {receipt.num_bytes / 1e6:.1f} MB, {receipt.seconds:.1f} s) in {bank}",
    ]
