"""`remanence ask`: one question, its answer, and what it was recalled from."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remanence.bank import answers
from remanence.cli import options as o
from remanence.cli.opening import open_session
from remanence.cli.terminal import clean, err, note, one_line, print_json, read_input, say
from remanence.errors import BankError, InputError
from remanence.text.decode import check_text

if TYPE_CHECKING:
    from rich.text import Text

    from remanence.session import Session
    from remanence.types import Recall, Reply

MaxTokensOption = Annotated[int, typer.Option("--max-tokens", metavar="N", help="Stop the answer after N tokens.")]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", metavar="X", help="0 gives the likeliest answer; higher values vary more.")
]
TopPOption = Annotated[
    float,
    typer.Option(
        "--top-p", metavar="X", help="Sample only from the likeliest tokens that together have probability X."
    ),
]

AskedAs = tuple[Path, str, str, str, int]
"""Bank, namespace, model, method and seed."""
NOTHING = "nothing recalled: no memory is about this"


def ask(
    question: Annotated[
        str | None, typer.Argument(help="The question. Without it, or with -, standard input is read.")
    ] = None,
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    no_memory: Annotated[
        bool, typer.Option("--no-memory", help="Do not recall anything: the model answers alone.")
    ] = False,
    without: o.WithoutOption = [],  # noqa: B006 (typer copies it)
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Answer a question from memory.

    The answer goes to standard output; the memories that it came from go to standard error.
    """
    prompt = _question(question)
    chosen = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "without": without}
    with open_session(bank, namespace, model, method, seed) as session:
        show = None if as_json else sys.stdout.write
        reply = answer(session, prompt, show, **chosen, recall=not no_memory)
        note_answer(session, (bank, namespace, model, method, seed), prompt, chosen, reply)
    if as_json:
        print_json(reply_json(reply))
    else:
        say()
        show_recalled(reply.recalled, "memory was not used (--no-memory)" if no_memory else NOTHING)


def _question(given: str | None) -> str:
    if given not in (None, "-"):
        return check_text(given or "", "the question")
    if sys.stdin.isatty():
        raise InputError("there is no question", 'type it: remanence ask "Who keeps the lighthouse?"')
    return check_text(read_input(), "the question")


def answer(session: Session, prompt: Any, show: Any = None, **chosen: Any) -> Reply:
    """The reply; with `show`, its text is given to `show` as it grows."""
    if show is None:
        return session.generate(prompt, **chosen)
    stream = session.stream(prompt, **chosen)
    for piece in stream:
        show(clean(piece))
        sys.stdout.flush()
    assert stream.reply is not None
    return stream.reply


def note_answer(
    session: Session,
    asked_as: AskedAs,
    question: str,
    chosen: dict[str, Any],
    reply: Reply,
    earlier: Iterable[str] = (),
) -> None:
    """Saves the answer for `why`, unless one of its memories was forgotten meanwhile.

    A disk that is full or read-only, or a busy one, must not cost the answer.
    """
    _, namespace, model, method, seed = asked_as
    known = {"namespace": namespace, "model": model, "method": method, "seed": seed, "question": question}
    options = {name: chosen[name] for name in answers.OPTIONS if name in chosen}
    with contextlib.suppress(OSError, BankError):
        every = tuple(dict.fromkeys((*earlier, *session.read_ids)))
        noted = answers.Answer.of(reply, time=time.time(), options=options, earlier=every, **known)
        session.bank.note_answer(noted)


def reply_json(reply: Reply) -> dict[str, Any]:
    return {
        "text": reply.text,
        "recalled": [asdict(recall) for recall in reply.recalled],
        "usage": asdict(reply.usage),
        "seconds": reply.seconds,
        "first_token_seconds": reply.first_token_seconds,
        "finish": reply.finish,
    }


def show_recalled(recalled: Any, otherwise: str = NOTHING) -> None:
    """Prints the memories on standard error, so that a pipe gets the answer alone; `otherwise` where there are none."""
    if not recalled:
        note(otherwise)
    for recall in recalled:
        err().print(recalled_line(recall), soft_wrap=True)


def recalled_line(recall: Recall) -> Text:
    from rich.text import Text

    figures = (
        [] if recall.score == recall.share else [f"relevance {recall.score:.2f}"]
    )  # a latent pool has no other score
    figures += [] if recall.share is None else [f"{recall.share:.0%} of attention"]
    return Text.assemble(
        (f"  {recall.id} ", "cyan"),
        one_line(recall.text),
        (f"  ({one_line(recall.source) or 'no source'}; {', '.join(figures)})", "dim"),
    )
