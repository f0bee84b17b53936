"""Retention: how many facts are still answered correctly after a number of tokens of other text.

The papers read one context, then distractors, again for each question. Here all facts are written first, then the other
text once, and all questions are asked at every mark: so the facts are distractors of each other, too. `answerable`
keeps the questions that the base model answers with the passage in its context, as M+ does (§4.3): others say nothing
about its memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from remanence.errors import InputError
from remanence.eval.metrics import best, exact_match, f1
from remanence.eval.readers import ExplicitReader, PoolReader, Reader, TextReader
from remanence.eval.streams import FactQuestion, check_files, draw_facts, other_texts, short_answers
from remanence.lm.lm import LM
from remanence.lm.load import load
from remanence.measurement import Bar, MeasurementOptions, envelope
from remanence.methods import load as load_method
from remanence.methods.mplus.method import MPlus

PASSAGE_TOKENS = 128
SYSTEMS = ("mplus", "mplus_without_ltm", "sliding_window", "full_context", "memory3")


@dataclass(frozen=True)
class Options(MeasurementOptions):
    """`tokens` tokens of other text follow `n` facts; all questions are asked every `every` tokens.

    `data`: a SQuAD file with the facts, `distractors`: a file with the other text (None: generated). `answerable`: only
    the questions of `data` that the base model answers with the passage in its context.
    """

    tokens: int = 160_000
    every: int = 10_000
    n: int = 100
    systems: tuple[str, ...] = SYSTEMS
    batch_size: int = 32
    max_tokens: int = 16
    data: Path | None = None
    distractors: Path | None = None
    answerable: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_files(self.data, self.distractors)
        if self.answerable and self.data is None:
            raise InputError("--answerable selects questions of a file", "add --data FILE (SQuAD format)")
        if unknown := [name for name in self.systems if name not in SYSTEMS]:
            raise InputError(f"no system is called {unknown[0]!r}", f"use some of {', '.join(SYSTEMS)}")


@dataclass
class Curve:
    """The answers of one system. `points`: (tokens of other text, answers).

    At the first point each fact has been written alone. `together`: the answers after all facts, before other text.
    `seconds` (of writing, per token) and `resident_bytes` are of the later points.
    """

    points: list[tuple[int, list[str]]] = field(default_factory=list)
    together: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)


def run(lm: LM, options: Options, bar: Bar, folder: Path) -> dict[str, Any]:
    """The envelope of a retention test: every system reads the same facts, then the same text.

    `folder`: for rows of long-term memory, and banks. InputError if the model does not support a system.
    """
    needs_pool = any(name.startswith("mplus") for name in options.systems)
    method = load_method("mplus", lm) if needs_pool or lm.latent is not None else None
    assert method is None or isinstance(method, MPlus)
    limit = method.reference_tokens() if method else PASSAGE_TOKENS
    if options.answerable:
        facts, choice = _answerable(_base(lm), options, lm.count_tokens, limit, bar)
    else:
        facts, choice = draw_facts(options.data, options.n, options.seed, lm.count_tokens, limit), None
    curves: dict[str, Curve] = {}
    for names, make in _readers(lm, method, options, folder):
        curves |= _follow(names, make(), facts, options, lm, limit, bar)
    return _result(lm, options, facts, choice, curves)


def _base(lm: LM) -> LM:
    """The base of an adapter for latent memory; any other model itself."""
    return load(str(lm.settings["adapter"]["base"])) if lm.latent is not None and "adapter" in lm.settings else lm


def _answerable(
    base: LM, options: Options, count_tokens: Callable[[str], int], limit: int, bar: Bar
) -> tuple[list[FactQuestion], dict[str, int]]:
    """(at most `n` questions that `base` answers exactly from their passage, the counts of questions)."""
    assert options.data is not None
    questions = [fact for facts in short_answers(options.data, count_tokens, limit) for fact in facts]
    reader, answered = TextReader(base, options.max_tokens), []
    with bar("questions that the base model can read", len(questions)) as advance:
        for fact in questions:
            [answer] = reader.right_after("full_context", [fact], 1)
            if best(exact_match, answer, fact.answers):
                answered.append(fact)
            advance(1)
    if not answered:
        raise InputError(
            f"the base model answers none of {len(questions)} questions of {options.data.name!r} from their passages",
            "give other questions, or leave --answerable out",
        )
    chosen = Random(f"retention {options.seed}").sample(answered, min(options.n, len(answered)))
    return chosen, {"asked_of_the_base_model": len(questions), "kept": len(answered)}


def _readers(
    lm: LM, method: MPlus | None, options: Options, folder: Path
) -> list[tuple[list[str], Callable[[], Reader]]]:
    """(names of systems, function that makes the reader that answers for them)."""
    base = _base(lm)
    chosen = options.systems
    readers: list[tuple[list[str], Callable[[], Reader]]] = []
    if method and (pooled := [name for name in chosen if name.startswith("mplus")]):
        readers.append((pooled, lambda: PoolReader(lm, method, options.seed, folder / "rows", options.max_tokens)))
    if texts := [name for name in chosen if name in ("sliding_window", "full_context")]:
        readers.append((texts, lambda: TextReader(base, options.max_tokens)))
    if "memory3" in chosen:
        readers.append((["memory3"], lambda: ExplicitReader(base, folder / "bank", options.max_tokens)))
    return readers


def _follow(
    names: Sequence[str], reader: Reader, facts: Sequence[FactQuestion], options: Options, lm: LM, limit: int, bar: Bar
) -> dict[str, Curve]:
    curves = {name: Curve() for name in names}
    passages = dict.fromkeys(fact.chunks for fact in facts)  # several questions may be about one passage
    with bar(f"{', '.join(names)}: facts", len(passages)) as advance:
        for name in names:
            curves[name].points.append((0, reader.right_after(name, facts, options.batch_size)))
        for chunks in passages:
            reader.write(chunks)
            advance(1)
        reader.flush()
        for name in names:
            curves[name].together = reader.ask(name, facts, options.batch_size) or []
    stream, done = other_texts(options.distractors, options.seed, lm.count_tokens, limit), 0
    with bar(f"{', '.join(names)}: other text", options.tokens) as advance:
        for goal in [*range(options.every, options.tokens, options.every), options.tokens]:
            if done >= goal:
                continue  # one chunk passed two marks
            first, seconds = done, 0.0
            while done < goal:
                text, size = next(stream)
                before = time.monotonic()
                reader.write([text])
                seconds += time.monotonic() - before
                done += size
                advance(size)
            before = time.monotonic()
            reader.flush()
            seconds += time.monotonic() - before
            for name in names:
                if (answers := reader.ask(name, facts, options.batch_size)) is not None:
                    curves[name].points.append((done, answers))
                curves[name].seconds.append(seconds / (done - first))
                curves[name].resident_bytes.append(resident_bytes())
    reader.close()
    return curves


def resident_bytes() -> int:
    """The RAM of this process, including mapped files; 0 if the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration, ValueError):
        return 0


def _result(
    lm: LM, options: Options, facts: Sequence[FactQuestion], choice: dict[str, int] | None, curves: dict[str, Curve]
) -> dict[str, Any]:
    systems = {name: _figures(curve, facts) for name, curve in curves.items()}
    ratios = {
        f"{name}_end_to_start": figures["curve"][-1][1] / figures["curve"][0][1]
        for name, figures in systems.items()
        if figures["curve"][0][1] > 0 and figures["curve"][-1][0] >= options.tokens
    }
    passages = {fact.chunks for fact in facts}
    conditions: dict[str, Any] = {
        "tokens": options.tokens,
        "passages": len(passages),
        "tokens_of_facts": sum(lm.count_tokens(chunk) for chunks in passages for chunk in chunks),
        "facts": "generated" if options.data is None else options.data.name,
        "other_text": "generated" if options.distractors is None else options.distractors.name,
    }
    if choice is not None:
        conditions["answerable"] = choice
    return envelope(
        "task",
        "retention",
        systems,
        n=len(facts),
        seed=options.seed,
        model=lm.name,
        conditions=conditions,
        ratios=ratios,
    )


def _figures(curve: Curve, facts: Sequence[FactQuestion]) -> dict[str, Any]:
    def mean(metric: Callable[[str, str], float], answers: list[str]) -> float:
        return sum(best(metric, a, fact.answers) for a, fact in zip(answers, facts, strict=True)) / len(facts)

    return {
        "curve": [[tokens, mean(exact_match, answers)] for tokens, answers in curve.points],
        "together": mean(exact_match, curve.together) if curve.together else None,
        "f1_curve": [[tokens, mean(f1, answers)] for tokens, answers in curve.points],
        "seconds_per_1000_tokens": [1000 * seconds for seconds in curve.seconds],
        "resident_bytes": curve.resident_bytes,
    }
