"""`remanence bank`: look into a bank."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from remanence.cli import bank_care
from remanence.cli import options as o
from remanence.cli.opening import open_bank
from remanence.cli.terminal import clean, note, one_line, out, print_json, progress, say, table

if TYPE_CHECKING:
    from remanence.types import Chunk, Hit

LimitOption = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="As `bank list` shows them.")]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def root() -> None:
    """Look into a bank, and take care of it."""


@app.command("stats")
def stats(
    bank: o.BankOption = o.BANK, namespace: o.NamespaceOption = o.NAMESPACE, as_json: o.JsonOption = False
) -> None:
    """Show how much a bank holds, made by which models, and what it takes on disk."""
    with open_bank(bank, namespace) as opened:
        numbers = opened.stats()
    if as_json:
        print_json(asdict(numbers))
        return
    made_by = [f"{numbers.memories[key]:,} by {_maker(about)}" for key, about in numbers.descriptions.items()]
    vectors = [f"{count:,} by {name}" for name, count in numbers.vectors.items()]
    for name, value in (
        ("namespace", numbers.namespace),
        ("chunks", f"{numbers.num_chunks:,}, {numbers.num_tokens:,} tokens"),
        ("hidden", f"{numbers.num_superseded:,} superseded, {numbers.num_expired:,} expired"),
        ("memories", "; ".join(made_by) or ("none: latent pools hold the texts" if numbers.num_pools else "none yet")),
        *([("per memory", f"{numbers.bytes_per_memory / 1e3:.1f} kB")] if made_by else []),
        ("latent pools", f"{numbers.num_pools}, {numbers.pool_bytes / 1e6:.1f} MB"),
        ("search vectors", "; ".join(vectors) or "none"),
        ("recalled", f"{numbers.num_recalls:,} times"),
        ("on disk", f"{numbers.disk_bytes / 1e6:.1f} MB, format {numbers.format}"),
    ):
        say((f"{name:<16}", "bold"), clean(value))


def _maker(about: Any) -> str:
    return f"{about.get('model', 'an unknown model')} with {about.get('method', 'an unknown method')}"


@app.command("list")
def list_(
    limit: LimitOption = 20,
    offset: Annotated[int, typer.Option("--offset", metavar="N", min=0, help="Pass over the first N.")] = 0,
    source: Annotated[str | None, typer.Option("--source", metavar="NAME", help="Of this document only.")] = None,
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    as_json: o.JsonOption = False,
) -> None:
    """List what is stored, oldest first."""
    with open_bank(bank, namespace) as opened:
        chunks, total = opened.list(limit=limit, offset=offset, source=source), len(opened)
    if as_json:
        print_json({"total": total, "chunks": [asdict(chunk) for chunk in chunks]})
        return
    shown = table(("id", {"style": "cyan", "no_wrap": True}), "text", "source", ("tokens", {"justify": "right"}))
    for chunk in chunks:
        shown.add_row(chunk.id, one_line(chunk.text, 80), one_line(chunk.source, 30), str(chunk.num_tokens))
    out().print(shown)
    if offset + len(chunks) < total and source is None:
        note(f"{len(chunks)} of {total:,}; go on with --offset {offset + len(chunks)}")


@app.command("search")
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    kind: Annotated[
        Literal["hybrid", "lexical", "dense"],
        typer.Option("--kind", help="lexical needs no model; the others use its search vectors."),
    ] = "hybrid",
    limit: LimitOption = 5,
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    as_json: o.JsonOption = False,
) -> None:
    """Show what a question would recall, and how it was found; nothing relevant, nothing shown."""
    with open_bank(bank, namespace) as opened:
        from remanence.text.retrieve import Retriever

        needs_model = kind == "dense" or (kind == "hybrid" and opened.embedders())
        retriever = Retriever(opened, _embedder(model) if needs_model else None, kind)
        hits = retriever.search(query, limit)
    if as_json:
        print_json({"retrieval": retriever.describe(), "hits": [_hit_json(hit) for hit in hits]})
        return
    shown = table(("score", {"justify": "right"}), ("id", {"style": "cyan", "no_wrap": True}), "text", "source", "rank")
    for hit in hits:
        ranks = ", ".join(f"{name} {rank}" for name, rank in hit.found_by.items())
        source = one_line(hit.chunk.source, 30)
        shown.add_row(f"{hit.score:.2f}", hit.chunk.id, one_line(hit.chunk.text, 80), source, ranks)
    if hits:
        out().print(shown)
    else:
        say("Nothing is about this.")
    note(retriever.describe())


def _embedder(model: str) -> Any:
    from remanence.lm.load import load

    with progress(f"Loading {model}"):
        return load(model).embedder


def _hit_json(hit: Hit) -> dict[str, Any]:
    return asdict(hit.chunk) | {"score": hit.score, "found_by": dict(hit.found_by)}


@app.command("show")
def show(
    ids: Ids,
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    as_json: o.JsonOption = False,
) -> None:
    """Show whole texts, and all that is known about them."""
    with open_bank(bank, namespace) as opened:
        chunks, usage = opened.get(ids), opened.usage()
    if as_json:
        recalls = [{"num_recalls": usage.get(chunk.id, (0, 0.0))[0]} for chunk in chunks]
        print_json({"chunks": [asdict(chunk) | more for chunk, more in zip(chunks, recalls, strict=True)]})
        return
    for chunk in chunks:
        _show(chunk, usage.get(chunk.id, (0, 0.0))[0])


def _show(chunk: Chunk, num_recalls: int) -> None:
    say((chunk.id, "bold cyan"))
    say(clean(chunk.text))
    known = [
        f"{clean(chunk.source) or 'no source'}, characters {chunk.start} to {chunk.end}, {chunk.num_tokens} tokens",
        f"written {_time(chunk.created)}, recalled {num_recalls} times",
    ]
    if chunk.expires is not None:
        known.append(f"expires {_time(chunk.expires)}")
    if chunk.supersedes:
        known.append(f"supersedes {chunk.supersedes}")
    known += [f"{clean(name)}: {clean(value)}" for name, value in chunk.metadata.items()]
    for line in known:
        say((f"  {line}", "dim"))


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


bank_care.register(app)
