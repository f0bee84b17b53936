"""The cost of recall: the same question for the plain model, and with references as memories and as text."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remanence import generation
from remanence.bank import Bank
from remanence.data.facts import distractor_passages
from remanence.errors import InputError
from remanence.lm.lm import LM
from remanence.measurement import Advance, Figures, MeasurementOptions, envelope, medians
from remanence.methods.base import Prompt
from remanence.session import Session
from remanence.sources import BankSource
from remanence.types import Hit

QUESTION = "What does the survey of the Harlow lighthouse say about its lamp?"
TOPIC = "Survey of the Harlow lighthouse, part {}: "
NUM_OTHERS = 95
"""Other passages in the bank, for the search."""
WARM, DISK, COLD, TEXT, PLAIN = "memory3_warm", "memory3_disk", "memory3_cold", "retrieved_text", "plain"


@dataclass(frozen=True)
class Options(MeasurementOptions):
    """`num_references` references of `reference_tokens` tokens; `tokens` tokens are generated, `repeats` times."""

    tokens: int = 256
    repeats: int = 9
    reference_tokens: int = 128
    num_references: int = 5
    method: str = "memory3"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("tokens", 2), ("reference_tokens", 32)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}", f"use {least} or more")


class FixedRetriever:
    """A retriever that searches, but always returns the same references."""

    def __init__(self, session: Session, ids: Sequence[str]) -> None:
        self.retriever = session.retriever
        self.hits = [Hit(chunk, 1.0) for chunk in session.bank.get(ids)]

    def search(self, query: str, limit: int = 5, *rest: Any) -> list[Hit]:
        self.retriever.search(query, limit, *rest)
        return self.hits[:limit]


def references(lm: LM, options: Options) -> list[str]:
    """Texts about one topic, of at most `reference_tokens` tokens and as long as possible."""
    words = iter(" ".join(distractor_passages(40 * options.num_references, options.seed)).split())
    return [_fill(lm, TOPIC.format(i + 1), words, options.reference_tokens) for i in range(options.num_references)]


def _fill(lm: LM, text: str, words: Iterator[str], limit: int) -> str:
    for word in words:
        longer = f"{text.rstrip()} {word}"
        if lm.count_tokens(longer) > limit:
            return text.rstrip()
        text = longer
    raise AssertionError("the generator gave too few words")


def without_stops(lm: LM) -> LM:
    """A copy of the model whose answers have no end token and no stop string."""
    copied = copy.copy(lm)
    vars(copied)["eos"], vars(copied)["stop"] = frozenset(), ()
    return copied


def ask(session: Session, lm: LM, retriever: Any, tokens: int, recall: bool) -> dict[str, float | int]:
    """Times (seconds from the question) and token counts of one answer of `tokens` tokens, on a session's own path."""
    prompt = Prompt(tuple(lm.render([{"role": "user", "content": QUESTION}])), QUESTION)
    start = time.perf_counter()
    source = BankSource(lm, session.method, session.bank, retriever) if recall else None
    answer = generation.Generation(lm, session.method, source, [prompt], generation.Options(max_tokens=tokens))
    times = [time.perf_counter() - start for _ in answer.steps()]
    reply = answer.replies()[0]
    total = time.perf_counter() - start
    assert len(times) == reply.usage.completion_tokens == tokens
    return {
        "first_token_seconds": times[0],
        "decode_tokens_per_second": (tokens - 1) / (times[-1] - times[0]),
        "reply_seconds": total,
        "prompt_tokens": reply.usage.prompt_tokens,
        "memory_tokens": reply.usage.memory_tokens,
    }


class RecallBench:
    """One bank, opened with and without its cache in RAM, and the systems that are measured on it."""

    def __init__(self, lm: LM, folder: Path, options: Options) -> None:
        self.lm, self.options = without_stops(lm), options
        self.warm = Session(self.lm, Bank.open(folder), options.method)
        if not self.warm.method.writes_tensors:
            raise InputError(f"method {options.method!r} stores no memories", "use memory3")
        self.warm.write(_others(options), warm=False)
        receipts = [self.warm.write(text) for text in references(lm, options)]
        self.ids = [id for receipt in receipts for id in receipt.ids]
        if len(self.ids) != options.num_references:
            raise InputError(
                f"{options.reference_tokens} tokens are more than a memory of {options.method!r} holds",
                f"use --reference-tokens {self.warm.method.reference_tokens()} or less",
            )
        self.warm.bank.index()  # as after some time of use
        self.disk = Session(self.lm, Bank.open(folder, ram_bytes=0), options.method)
        self.text = Session(self.lm, self.warm.bank, TEXT)
        self.retriever = FixedRetriever(self.warm, self.ids)
        self.ids_found = {hit.chunk.id for hit in self.warm.retriever.search(QUESTION, options.num_references)}

    def systems(self) -> dict[str, Callable[[], dict[str, float | int]]]:
        """The systems in the order of a round. "cold" comes last: it writes the memories again."""
        return {
            PLAIN: lambda: self._ask(self.text, recall=False),
            WARM: lambda: self._ask(self.warm),
            TEXT: lambda: self._ask(self.text),
            DISK: lambda: self._ask(self.disk),
            COLD: self._cold,
        }

    def _ask(self, session: Session, recall: bool = True) -> dict[str, float | int]:
        return ask(session, self.lm, self.retriever, self.options.tokens, recall)

    def _cold(self) -> dict[str, float | int]:
        self.warm.bank.drop_memories(self.warm.fingerprint)
        return self._ask(self.warm)

    def bytes_read(self) -> dict[str, int]:
        """The bytes of all references, by system, as each reads them."""
        memories = [m for m in self.warm.bank.load(self.warm.fingerprint, self.ids) if m is not None]
        texts = sum(len(chunk.text.encode()) for chunk in self.warm.bank.get(self.ids))
        memory = sum(memory.num_bytes for memory in memories)
        return {PLAIN: 0, WARM: memory, TEXT: texts, DISK: memory, COLD: texts}

    def close(self) -> None:
        for session in (self.warm, self.disk):
            session.close()


def _others(options: Options) -> str:
    return "\n\n".join(distractor_passages(NUM_OTHERS, options.seed + 1))


def run(lm: LM, options: Options, on_round: Advance = lambda rounds: None) -> dict[str, Any]:
    """The envelope with medians over `repeats` rounds of all systems in turn, after one round that is not counted."""
    rounds: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = RecallBench(lm, Path(folder) / "bank", options)
        try:
            for number in range(options.repeats + 1):
                for name, measure in bench.systems().items():
                    figures = measure()
                    if number:
                        rounds.setdefault(name, []).append(figures)
                on_round(1)
            read = bench.bytes_read()
            num_chunks, num_found = len(bench.warm.bank), len(bench.ids_found & set(bench.ids))
            tokens = [chunk.num_tokens for chunk in bench.warm.bank.get(bench.ids)]
        finally:
            bench.close()
    systems = {name: {**medians(column), "recalled_bytes": read[name]} for name, column in rounds.items()}
    conditions = {
        "model": lm.name,
        "method": options.method,
        "generated_tokens": options.tokens,
        "repeats": options.repeats,
        "reference_tokens": statistics.mean(tokens),
        "num_references": options.num_references,
        "bank_chunks": num_chunks,
        "references_found_by_search": num_found,
        **({"load_average": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}),
    }
    return envelope("bench", "recall", systems, conditions=conditions, ratios=ratios(rounds))


def ratios(rounds: dict[str, list[Figures]]) -> dict[str, float]:
    """Medians of the ratios within each round, so that a slow round does not matter."""

    def ratio(figure: str, above: str, below: str) -> float:
        pairs = zip(rounds[above], rounds[below], strict=True)
        return statistics.median(float(a[figure] or 0) / float(b[figure] or 1) for a, b in pairs)

    first, decode = "first_token_seconds", "decode_tokens_per_second"
    return {
        f"first_token_{TEXT}_over_{WARM}": ratio(first, TEXT, WARM),
        f"first_token_{TEXT}_over_{DISK}": ratio(first, TEXT, DISK),
        f"first_token_{TEXT}_over_{COLD}": ratio(first, TEXT, COLD),
        f"decode_{WARM}_over_{PLAIN}": ratio(decode, WARM, PLAIN),
        f"decode_{TEXT}_over_{PLAIN}": ratio(decode, TEXT, PLAIN),
    }
