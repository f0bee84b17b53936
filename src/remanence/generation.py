"""Answers for a batch of prompts: read memory, then decode, then say what each answer was recalled from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from remanence import arguments, conversation
from remanence.errors import InputError, suggest
from remanence.lm.decode import Row, Sampling, decode
from remanence.methods.base import Prompt, Reading
from remanence.types import Recall, Reply, Usage

if TYPE_CHECKING:
    from remanence.lm.lm import LM
    from remanence.methods.base import Method
    from remanence.sources import BankSource

GREEDY_BELOW = 1e-6
"""A smaller temperature is 0: logits divided by it would not be finite."""


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `Session.generate`, which says what each means."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: str | Iterable[str] | None
    without: str | Iterable[str] | None
    recall: bool
    attribution: bool


@dataclass(frozen=True)
class Options:
    """How to answer, checked: see `Session.generate`. None is the default of each; one str is one entry."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: Collection[str] = ()
    without: Collection[str] = ()
    recall: bool = True
    attribution: bool = True

    def __post_init__(self) -> None:
        put = object.__setattr__  # the instance is frozen
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is None:
                put(self, field.name, field.default)
        put(self, "max_tokens", arguments.whole("max_tokens", self.max_tokens, 1))
        hint = "use 0 for greedy decoding, or 0.1 to 2"
        temperature = arguments.real("temperature", self.temperature, hint)
        if temperature < 0:
            raise InputError(f"temperature {self.temperature} is below 0", hint)
        put(self, "temperature", temperature if temperature >= GREEDY_BELOW else 0.0)
        hint = "use 1 to keep every token, or a number above 0"
        top_p = arguments.real("top_p", self.top_p, hint)
        if not 0 < top_p <= 1:
            raise InputError(f"top_p {self.top_p} is not in (0, 1]", hint)
        put(self, "top_p", max(top_p, GREEDY_BELOW))
        put(self, "seed", arguments.seed("seed", self.seed))
        for name in ("stop", "without"):
            put(self, name, arguments.strings(name, getattr(self, name)))
        if "" in self.stop:
            raise InputError("a stop string is empty, which would end every answer at once", "leave it out")
        for name in ("recall", "attribution"):
            put(self, name, arguments.flag(name, getattr(self, name)))

    @staticmethod
    def of(options: Mapping[str, Any], seed: int) -> Options:
        """From keyword arguments; `seed` where they name none. Raises InputError for a name that does not exist."""
        names = [field.name for field in dataclasses.fields(Options)]
        if unknown := sorted(set(options) - set(names)):
            raise InputError(f"there is no option {unknown[0]!r}", suggest(unknown[0], names))
        return Options(**{**options, "seed": seed if options.get("seed") is None else options["seed"]})


def parse_prompts(lm: LM, prompts: object) -> list[Prompt]:
    """Token ids and question of each prompt of a batch; see `conversation.parse`."""
    items = arguments.each(prompts)
    if items is None:
        raise InputError(f"the batch is {arguments.shown(prompts)}", "give a list of questions or conversations")
    parsed = [conversation.parse(prompt) for prompt in items]
    return [Prompt(tuple(conversation.token_ids(lm, one.messages)), one.question) for one in parsed]


def generations(
    method: Method, source: BankSource, prompts: Sequence[Prompt], options: Options, begun: float
) -> Iterator[tuple[list[int], Generation]]:
    """Prompts that read memory, then those that the method is not about, each with their places in the batch.

    `begun`: `time.monotonic()` when the call began. Raises UnknownChunk for an id in `options.without` that the bank
    does not hold.
    """
    if not prompts:
        return
    if options.without:
        source.bank.get(list(options.without))
    reads = method.is_about(source.lm, source, prompts) if options.recall else [False] * len(prompts)
    for is_read, places in read_or_not(reads):
        part = [prompts[place] for place in places]
        yield places, Generation(source.lm, method, source if is_read else None, part, options, begun)


def read_or_not(reads: Sequence[bool]) -> Iterator[tuple[bool, list[int]]]:
    """(True, places of the prompts that read memory), then (False, the others); nothing for an empty list."""
    for is_read in (True, False):
        if places := [place for place, read in enumerate(reads) if read is is_read]:
            yield is_read, places


class Generation:
    """A batch of answers while they are generated. `source` None: the plain model answers."""

    def __init__(
        self,
        lm: LM,
        method: Method,
        source: BankSource | None,
        prompts: Sequence[Prompt],
        options: Options,
        begun: float | None = None,
    ) -> None:
        self.lm, self.method, self.source, self.prompts, self.options = lm, method, source, prompts, options
        self.begun = time.monotonic() if begun is None else begun
        self.reading = self._read()
        self.rows: list[Row] = []
        self.first_token_seconds = self.seconds = 0.0

    @torch.inference_mode()
    def _read(self) -> Reading:
        if self.source is None:
            ids = tuple(prompt.ids for prompt in self.prompts)
            return Reading(ids, None, None, tuple(((0, ()),) for _ in ids))
        return self.method.read(self.lm, self.source, self.prompts)

    @torch.inference_mode()
    def _refresh(self, sequences: list[list[int]]) -> Any:
        assert self.source is not None
        self.reading = self.method.refresh(self.lm, self.source, self.reading, sequences)
        return self.reading.decoding

    def steps(self) -> Iterator[list[Row]]:
        """The answers after each new token; the same `Row` objects each time."""
        for rows in decode(
            self.lm,
            self.reading.prompts,
            self.reading.prefix,
            decoding_prefix=self.reading.decoding,
            refresh=None if self.source is None else self._refresh,
            max_tokens=self.options.max_tokens,
            sampling=Sampling(self.options.temperature, self.options.top_p, self.options.seed),
            stop=(*self.options.stop, *self.lm.stop),
            role=None if self.source is None else self.method.role,
        ):
            self.seconds = time.monotonic() - self.begun
            self.first_token_seconds = self.first_token_seconds or self.seconds
            self.rows = rows
            yield rows

    def replies(self) -> list[Reply]:
        """One reply for each prompt, after `steps` has ended; counts in the bank what was recalled."""
        shares: list[dict[str, float]] = [{} for _ in self.rows]
        if self.source is not None:
            if self.options.attribution:
                sequences = [[*row.prompt, *row.ids[: row.num_tokens]] for row in self.rows]
                shares = self.method.attention_shares(self.lm, self.source, self.reading, sequences)
                self.reading = self.method.attribute(self.source, self.reading, shares)
            self.source.bank.note_recalled(
                [hit.chunk.id for groups in self.reading.groups for _, hits in groups for hit in hits]
            )
        return [self._reply(b, row, shares[b]) for b, row in enumerate(self.rows)]

    def _reply(self, b: int, row: Row, shares: Mapping[str, float]) -> Reply:
        best = {hit.chunk.id: hit for _, hits in self.reading.groups[b] for hit in sorted(hits, key=lambda h: h.score)}
        recalled = [
            Recall(hit.chunk.id, hit.chunk.text, hit.chunk.source, hit.score, shares.get(hit.chunk.id))
            for hit in sorted(best.values(), key=lambda h: -h.score)
        ]
        memory_tokens = self.reading.memory_tokens[b] if self.reading.memory_tokens else 0
        usage = Usage(len(self.reading.prompts[b]), row.num_tokens, memory_tokens)
        return Reply(row.text.strip(), recalled, usage, self.seconds, self.first_token_seconds, row.finish or "length")


class Stream:
    """Iterate for pieces of text; `reply` is None until the iteration has ended."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self.reply: Reply | None = None

    def __iter__(self) -> Iterator[str]:
        num_chars = 0
        for rows in self._generation.steps():
            text = rows[0].text.lstrip()
            if len(text) > num_chars:
                yield text[num_chars:]
                num_chars = len(text)
        self.reply = self._generation.replies()[0]
