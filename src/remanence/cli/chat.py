"""`remanence chat`: a conversation with memory, that can be told to remember and to forget."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from remanence.cli import options as o
from remanence.cli.ask import (
    AskedAs,
    MaxTokensOption,
    TemperatureOption,
    answer,
    note_answer,
    reply_json,
    show_recalled,
)
from remanence.cli.opening import open_session
from remanence.cli.terminal import fail, note, print_json, prompt, say
from remanence.errors import ContextTooLong, InputError, RemanenceError

if TYPE_CHECKING:
    from remanence.conversation import Message
    from remanence.session import Session
    from remanence.types import Reply

HELP = (
    "/remember TEXT stores a text · /forget ID removes one · /why shows what was recalled · /new starts again · /quit"
)


def chat(
    max_tokens: MaxTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    bank: o.BankOption = o.BANK,
    namespace: o.NamespaceOption = o.NAMESPACE,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
) -> None:
    """Talk with a model that remembers.

    In a pipe every line of standard input is a message; with --json all turns are one object.
    """
    with open_session(bank, namespace, model, method, seed, new=True) as session:
        asked_as = (bank, namespace, model, method, seed)
        talk = Talk(session, asked_as, {"max_tokens": max_tokens, "temperature": temperature}, as_json)
        if sys.stdin.isatty() and not as_json:
            note(f"Talking with {model}, memories in {bank}. {HELP}")
        for line in _lines(as_json):
            if not talk.turn(line):
                break
    if as_json:
        print_json({"turns": talk.turns})


def _lines(as_json: bool) -> Iterator[str]:
    """Messages without their line ends, until the end of input."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a wrong byte costs a character, not the conversation
    while True:
        if sys.stdin.isatty() and not as_json:
            prompt("you> ", "bold green")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


class Talk:
    """A conversation so far; a message that cannot be answered costs one line, not the conversation."""

    def __init__(self, session: Session, asked_as: AskedAs, chosen: dict[str, Any], quiet: bool) -> None:
        self.session, self.asked_as, self.chosen, self.quiet = session, asked_as, chosen, quiet
        self.messages: list[Message] = []
        self.turns: list[dict[str, Any]] = []
        self.reply: Reply | None = None
        self.earlier: dict[str, None] = {}
        """Ids recalled so far: an answer may repeat what an earlier turn recalled."""

    def turn(self, line: str) -> bool:
        """False when the conversation is over."""
        verb, _, rest = line.partition(" ")
        if verb == "/quit":
            return False
        try:
            if verb.startswith("/"):
                self._command(verb, rest.strip())
            else:
                self._say(line)
        except RemanenceError as error:
            fail(str(error))
        return True

    def _say(self, line: str) -> None:
        self.messages.append({"role": "user", "content": line})
        try:
            self.reply = reply = self._answer()
        except RemanenceError:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": reply.text})
        self.turns.append({"user": line, **reply_json(reply)})
        note_answer(self.session, self.asked_as, line, self.chosen, reply, self.earlier)
        self.earlier |= dict.fromkeys(recall.id for recall in reply.recalled)
        if not self.quiet:
            say()

    def _answer(self) -> Reply:
        """When the conversation outgrows the model, its oldest turns are left out: memory is for what must last."""
        while True:
            try:
                return answer(self.session, self.messages, None if self.quiet else sys.stdout.write, **self.chosen)
            except ContextTooLong:
                if len(self.messages) < 3:
                    raise
                del self.messages[:2]

    def _command(self, verb: str, rest: str) -> None:
        if verb == "/remember":
            if not rest:
                raise InputError("there is no text to remember", "/remember TEXT")
            receipt = self.session.write(rest, source="chat")
            note(f"remembered as {', '.join(receipt.ids)}")
        elif verb == "/forget":
            if not rest:
                raise InputError("there is no id to forget", "/forget ID, as /why shows them")
            self.session.forget(*rest.split())
            self._begin_anew()  # what was forgotten may stand in it
            self.reply = None
            note("forgotten, and the conversation starts again")
        elif verb == "/why":
            if self.reply:
                show_recalled(self.reply.recalled)
            else:
                note("nothing was asked yet")
        elif verb == "/new":
            self._begin_anew()
            note("the conversation starts again")
        else:
            note(f"there is no command {verb}. {HELP}" if verb != "/help" else HELP)

    def _begin_anew(self) -> None:
        self.messages.clear()
        self.earlier.clear()
