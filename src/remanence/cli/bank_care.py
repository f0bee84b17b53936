"""`remanence bank`: the verbs that change, check or move a bank."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from remanence.cli import options as o
from remanence.cli.opening import check_bank, open_bank, open_session
from remanence.cli.terminal import confirm, counted, err, fail, one_line, print_json, progress, say
from remanence.errors import InputError

if TYPE_CHECKING:
    from remanence.bank import CompactReceipt, VerifyReport


def forget(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As `bank list` shows them.")] = None,
    source: Annotated[str | None, typer.Option("--source", metavar="NAME", help="All of this document.")] = None,
    yes: o.YesOption = False,
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    as_json: o.JsonOption = False,
) -> None:
    """Forget texts, all that was made of them, and answers from them. It cannot be undone.

    An unknown id is an error, and then nothing is forgotten.
    """
    with open_bank(bank, namespace) as opened:
        chunks = opened.get(ids or []) + (opened.list(source=source, include_superseded=True) if source else [])
        if not chunks:
            problem = f"nothing is stored from source {source!r}" if source else "there is nothing to forget"
            raise InputError(problem, "give ids or a --source, as `remanence bank list` shows them")
        if not yes:
            for chunk in chunks[:10]:
                err().print(Text.assemble((f"  {chunk.id} ", "cyan"), one_line(chunk.text)), soft_wrap=True)
        confirm(f"Forget {counted(len(chunks), 'text', 'texts')} for good, and what was made of them?", yes)
        receipt = opened.forget([chunk.id for chunk in chunks])
    if as_json:
        print_json(asdict(receipt))
        return
    texts = counted(len(receipt.ids), "text", "texts")
    memories = counted(receipt.num_memories, "memory", "memories")
    say(f"Forgot {texts} and {memories}: nothing recalls them now.")
    if not receipt.bytes_gone:
        say((f"Their bytes leave the disk with `remanence bank compact --bank {shlex.quote(str(bank))}`.", "dim"))


def verify(
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", min=0, help="So many memories are made again and compared.")
    ] = 8,
    no_model: Annotated[bool, typer.Option("--no-model", help="Check bytes only: no model is loaded.")] = False,
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    as_json: o.JsonOption = False,
) -> None:
    """Check every file, row and memory. Exit code 1 if something is damaged."""
    check_bank(bank)
    if no_model or not sample:
        with open_bank(bank, namespace) as opened, progress("Checking"):
            report = opened.verify()
    else:
        with open_session(bank, namespace, model, method, 0) as session, progress("Checking"):
            has_memories = session.fingerprint in session.bank.fingerprints()
            recompute = session.recompute if has_memories else None
            report = session.bank.verify(recompute, sample, fingerprint=session.fingerprint)
    if as_json:
        print_json({"ok": report.ok} | asdict(report))
    else:
        _show_report(report)
    if not report.ok:
        raise typer.Exit(1)


def _show_report(report: VerifyReport) -> None:
    pools = counted(report.num_pools, "latent pool", "latent pools")
    say(
        f"Checked {report.num_files:,} files, {report.num_chunks:,} chunks, {report.num_memories:,} memories, "
        f"{report.num_vectors:,} search vectors and {pools}; "
        f"made {report.num_recomputed} memories again."
    )
    for problem in report.problems:
        fail(problem)
    if report.ok:
        say(("All is as it was written.", "green"))
    else:
        from remanence.bank.pool_files import remedy

        say(f"-> {remedy(report.problems)}")


def compact(
    bank: o.BankOption = o.BANK, namespace: o.NamespaceOption = o.NAMESPACE, as_json: o.JsonOption = False
) -> None:
    """Give back disk space: what was forgotten or has expired leaves the disk."""
    with open_bank(bank, namespace) as opened, progress("Compacting"):
        receipt: CompactReceipt = opened.compact()
    if as_json:
        print_json(asdict(receipt))
        return
    before, after = receipt.bytes_before / 1e6, receipt.bytes_after / 1e6
    gone = "what was forgotten is gone from disk" if receipt.bytes_gone else "something of it may be left"
    say(f"{before:.1f} MB became {after:.1f} MB in {receipt.seconds:.1f} s; {gone}.")
    for name in receipt.left:
        fail(f"{name} may still hold what was forgotten: close what uses it and compact again, or remove it")


def export(
    path: Annotated[Path, typer.Argument(help="A file of JSON lines, made or replaced.")],
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    as_json: o.JsonOption = False,
) -> None:
    """Write all texts of a namespace as JSON lines: what anybody can read, and `bank import` takes back."""
    with open_bank(bank, namespace) as opened:
        count = opened.export(path)
    if as_json:
        print_json({"path": str(path), "num_chunks": count})
    else:
        say(f"Wrote {count:,} chunks to {path}.")


def import_(
    path: Annotated[Path, typer.Argument(help="What `bank export` wrote.")],
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    as_json: o.JsonOption = False,
) -> None:
    """Add the texts of an export.

    Memories are made when they are first recalled; search vectors by `bank migrate`, until then words alone find them.
    """
    if not path.is_file():
        raise InputError(f"'{path}' does not exist", "give a file that `remanence bank export` wrote")
    with open_bank(bank, namespace, new=True) as opened, progress("Importing"):
        added = opened.import_(path)
    num_new = sum(is_new for _, is_new in added)
    if as_json:
        print_json({"path": str(path), "num_chunks": len(added), "num_new": num_new})
    else:
        say(f"Added {num_new:,} chunks of {len(added):,}; the others were there already.")
        if num_new:
            hint = f"`remanence bank migrate --bank {shlex.quote(str(bank))}` makes their search vectors and memories"
            say(f"-> {hint}, with the --model, --method and --namespace that you use; until then words alone find them")


def migrate(
    drop_old: Annotated[bool, typer.Option("--drop-old", help="Then remove the memories of other models.")] = False,
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    as_json: o.JsonOption = False,
) -> None:
    """Make memories of all texts for another model or method; texts stay as they are."""
    with open_session(bank, namespace, model, method, 0, adopt=True) as session:
        opened = session.bank
        with progress("Migrating", total=len(opened)) as advance:
            count = session.migrate(on_progress=advance)
        others = [fingerprint for fingerprint in opened.fingerprints() if fingerprint != session.fingerprint]
        num_dropped = sum(opened.drop_memories(fingerprint) for fingerprint in others) if drop_old else 0
    if as_json:
        print_json({"num_chunks": count, "num_dropped": num_dropped})
    else:
        dropped = f" {num_dropped:,} memories of other models were removed." if drop_old else ""
        say(f"{count:,} chunks have memories for {model} with {method}.{dropped}")


def register(app: typer.Typer) -> None:
    app.command("forget")(forget)
    app.command("verify")(verify)
    app.command("compact")(compact)
    app.command("export")(export)
    app.command("import")(import_)
    app.command("migrate")(migrate)
