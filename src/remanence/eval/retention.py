"""How much of what was written is still answered after so many tokens of other text.

Unlike the papers' exam (one context, then distractors, for each question anew) all facts are written first, and all
are asked at every mark: so the facts are each other's distractors too, and the other text is read once.
`answerable` asks only what the base model can read, as M+ does (§4.3): what a model cannot answer with the passage
before its eyes says nothing about its memory.
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
from remanence.eval.pooled import PoolReader
from remanence.eval.run import Bar
from remanence.eval.streams import Fact, check_files, facts_to_keep, other_texts, short_answers
from remanence.eval.windows import ExplicitReader, TextReader
from remanence.lm.lm import LM
from remanence.lm.load import load
from remanence.methods import load as load_method
from remanence.methods.mplus.method import MPlus
from remanence.provenance import commit, machine

PASSAGE_TOKENS = 128
SYSTEMS = ("mplus", "mplus_without_ltm", "sliding_window", "full_context", "memory3")


@dataclass(frozen=True)
class Options:
    """`tokens` of other text are written after the facts; every `every` of them all questions are asked.

    `answerable`: of all short questions of `data`, those that the base model answers with the passage in its context.
    """

    tokens: int = 160_000
    every: int = 10_000
    n: int = 100
    systems: tuple[str, ...] = SYSTEMS
    seed: int = 0
    batch_size: int = 32
    max_tokens: int = 16
    data: Path | None = None
    distractors: Path | None = None
    answerable: bool = False

    def __post_init__(self) -> None:
        for name in ("tokens", "every", "n", "batch_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name.replace('_', ' ')} is {getattr(self, name)}", "use 1 or more")
        check_files(self.data, self.distractors)
        if self.answerable and self.data is None:
            raise InputError("--answerable chooses among the questions of a file", "add --data FILE (SQuAD format)")
        if odd := [name for name in self.systems if name not in SYSTEMS]:
            raise InputError(f"no system is called {odd[0]!r}", f"use some of {', '.join(SYSTEMS)}")


@dataclass
class Curve:
    """`points`: (tokens of other text, answers), the first of each fact right after it was written alone.

    `together`: after all facts and before other text. `seconds` of writing and `resident_bytes` at each later point.
    """

    points: list[tuple[int, list[str]]] = field(default_factory=list)
    together: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)


def run(lm: LM, options: Options, bar: Bar, folder: Path) -> dict[str, Any]:
    """Every system reads the same facts, then the same text; `folder` takes long-term rows and banks.

    A model without latent memory is read by those that need none.
    """
    needs_pool = any(name.startswith("mplus") for name in options.systems)
    method = load_method("mplus", lm) if needs_pool or lm.latent is not None else None
    assert method is None or isinstance(method, MPlus)
    limit = method.reference_tokens() if method else PASSAGE_TOKENS
    if options.answerable:
        kept, choice = _answerable(_base(lm), options, lm.count_tokens, limit, bar)
    else:
        kept, choice = facts_to_keep(options.data, options.n, options.seed, lm.count_tokens, limit), None
    curves: dict[str, Curve] = {}
    for names, make in _readers(lm, method, options, folder):
        curves |= _follow(names, make(), kept, options, lm, limit, bar)
    return _result(lm, options, kept, choice, curves)


def _base(lm: LM) -> LM:
    """The model that an adapter for latent memory was made for; any other as it is."""
    return load(str(lm.settings["adapter"]["base"])) if lm.latent is not None and "adapter" in lm.settings else lm


def _answerable(
    base: LM, options: Options, count_tokens: Callable[[str], int], limit: int, bar: Bar
) -> tuple[list[Fact], dict[str, int]]:
    """At most `n` of the questions that `base` answers exactly with their passage alone; how many those are."""
    assert options.data is not None
    asked = [fact for facts in short_answers(options.data, count_tokens, limit) for fact in facts]
    reader, known = TextReader(base, options.max_tokens), []
    with bar("questions that the base model can read", len(asked)) as advance:
        for item in asked:
            [answer] = reader.right_after("full_context", [item], 1)
            if best(exact_match, answer, item.answers):
                known.append(item)
            advance(1)
    if not known:
        raise InputError(
            f"the base model answers none of {len(asked)} questions of {options.data.name!r} from their passages",
            "give other questions, or leave --answerable out",
        )
    chosen = Random(f"retention {options.seed}").sample(known, min(options.n, len(known)))
    return chosen, {"asked_of_the_base_model": len(asked), "kept": len(known)}


def _readers(lm: LM, method: MPlus | None, options: Options, folder: Path) -> list[tuple[list[str], Callable[[], Any]]]:
    """What reads the stream, and the systems that it answers for."""
    base = _base(lm)
    chosen = options.systems
    found: list[tuple[list[str], Callable[[], Any]]] = []
    if method and (pooled := [name for name in chosen if name.startswith("mplus")]):
        found.append((pooled, lambda: PoolReader(lm, method, options.seed, folder / "rows", options.max_tokens)))
    if texts := [name for name in chosen if name in ("sliding_window", "full_context")]:
        found.append((texts, lambda: TextReader(base, options.max_tokens)))
    if "memory3" in chosen:
        found.append((["memory3"], lambda: ExplicitReader(base, folder / "bank", options.max_tokens)))
    return found


def _follow(
    names: Sequence[str], reader: Any, kept: Sequence[Fact], options: Options, lm: LM, limit: int, bar: Bar
) -> dict[str, Curve]:
    curves = {name: Curve() for name in names}
    passages = dict.fromkeys(item.chunks for item in kept)  # several questions may be about one
    with bar(f"{', '.join(names)}: facts", len(passages)) as advance:
        for name in names:
            curves[name].points.append((0, reader.right_after(name, kept, options.batch_size)))
        for chunks in passages:
            reader.write(chunks)
            advance(1)
        reader.flush()
        for name in names:
            curves[name].together = reader.ask(name, kept, options.batch_size) or []
    stream, done = other_texts(options.distractors, options.seed, lm.count_tokens, limit), 0
    with bar(f"{', '.join(names)}: other text", options.tokens) as advance:
        for goal in [*range(options.every, options.tokens, options.every), options.tokens]:
            if done >= goal:
                continue  # one chunk has passed two marks
            begun, seconds = done, 0.0
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
                if (answers := reader.ask(name, kept, options.batch_size)) is not None:
                    curves[name].points.append((done, answers))
                curves[name].seconds.append(seconds / (done - begun))
                curves[name].resident_bytes.append(resident_bytes())
    reader.close()
    return curves


def resident_bytes() -> int:
    """What this process holds in RAM now, mapped files included; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration, ValueError):
        return 0


def _result(
    lm: LM, options: Options, kept: Sequence[Fact], choice: dict[str, int] | None, curves: dict[str, Curve]
) -> dict[str, Any]:
    systems = {name: _figures(curve, kept) for name, curve in curves.items()}
    ratios = {
        f"{name}_end_to_start": figures["curve"][-1][1] / figures["curve"][0][1]
        for name, figures in systems.items()
        if figures["curve"][0][1] > 0 and figures["curve"][-1][0] >= options.tokens
    }
    passages = {item.chunks for item in kept}
    conditions: dict[str, Any] = {
        "tokens": options.tokens,
        "passages": len(passages),
        "tokens_of_facts": sum(lm.count_tokens(chunk) for chunks in passages for chunk in chunks),
        "facts": "generated" if options.data is None else options.data.name,
        "other_text": "generated" if options.distractors is None else options.distractors.name,
    }
    if choice is not None:
        conditions["answerable"] = choice
    return {
        "task": "retention",
        "n": len(kept),
        "seed": options.seed,
        "commit": commit(),
        "machine": machine(),
        "model": lm.name,
        "conditions": conditions,
        "systems": systems,
        "ratios": ratios,
    }


def _figures(curve: Curve, kept: Sequence[Fact]) -> dict[str, Any]:
    def mean(metric: Callable[[str, str], float], answers: list[str]) -> float:
        return sum(best(metric, a, item.answers) for a, item in zip(answers, kept, strict=True)) / len(kept)

    return {
        "curve": [[tokens, mean(exact_match, answers)] for tokens, answers in curve.points],
        "together": mean(exact_match, curve.together) if curve.together else None,
        "f1_curve": [[tokens, mean(f1, answers)] for tokens, answers in curve.points],
        "seconds_per_1000_tokens": [1000 * seconds for seconds in curve.seconds],
        "resident_bytes": curve.resident_bytes,
    }
