"""Recall of long-term memory: how many of a fact's rows its question retrieves, after much other text.

As the authors' `ltm/avg_recall`, but of all facts instead of the first chunk, and staged rows count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from remanence.errors import InputError
from remanence.eval.readers import PoolReader
from remanence.eval.streams import FactQuestion, check_files, draw_facts, other_texts
from remanence.lm.lm import LM
from remanence.measurement import Bar, MeasurementOptions, envelope
from remanence.methods import load as load_method
from remanence.methods.mplus.dropping import POLICIES
from remanence.methods.mplus.method import MPlus
from remanence.methods.mplus.modules import MPlusModules
from remanence.methods.mplus.prefix import PoolPrefix
from remanence.methods.mplus.rankers import Ranker, at_random, attended, by_write, oracle, recent, trained

CHOICES = ("writes", "rows", "attended", "recent", "random", "oracle")
"""Rankers. writes: the co-trained retriever ranks whole writes; rows: single rows, as in the authors' code."""
TRAINED = "trained"
"""The retriever in the model's folder. Others are paths of files that `train --stage retrievers` wrote."""


@dataclass(frozen=True)
class Options(MeasurementOptions):
    """As in `retention.Options`. The table has an entry for each of `losses`, `drops` and `choices`."""

    tokens: int = 160_000
    n: int = 100
    drops: tuple[str, ...] = ("random",)
    choices: tuple[str, ...] = CHOICES
    losses: tuple[str, ...] = (TRAINED,)
    batch_size: int = 32
    data: Path | None = None
    distractors: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_files(self.data, self.distractors)
        if not (self.choices and self.drops and self.losses):
            raise InputError("the table is empty", "give at least one drop, choice and loss")
        for names, known in ((self.choices, CHOICES), (self.drops, tuple(POLICIES))):
            if unknown := [name for name in names if name not in known]:
                raise InputError(f"there is no {unknown[0]!r}", f"use some of {', '.join(known)}")


def run(lm: LM, options: Options, bar: Bar, folder: Path) -> dict[str, Any]:
    """The envelope, with `table`: for each loss, drop policy and choice the mean over layers and questions."""
    method = load_method("mplus", lm)
    assert isinstance(method, MPlus)
    facts = draw_facts(options.data, options.n, options.seed, lm.count_tokens, method.reference_tokens())
    table: list[dict[str, Any]] = []
    retrievers = {loss: _modules(lm, method, loss) for loss in options.losses}  # files are read first
    for loss in options.losses:
        for drop in options.drops:
            config = replace(method.config, drop=drop)
            reader = PoolReader(lm, MPlus(config, retrievers[loss]), options.seed, folder)
            _write(reader, facts, options, bar, f"retriever {loss}, drop {drop}")
            for choice in options.choices:
                figures = _figures(reader, facts, choice, options)
                table.append({"loss": loss, "drop": drop, "choice": choice, **figures})
            reader.close()
    first = (options.losses[0], options.drops[0])
    return envelope(
        "task",
        "ltm-recall",
        None,
        n=len(facts),
        seed=options.seed,
        model=lm.name,
        conditions={"tokens": options.tokens, "slots": method.config.long_slots},
        recall={row["choice"]: row["recall"] for row in table if (row["loss"], row["drop"]) == first},
        table=table,
    )


def _modules(lm: LM, method: MPlus, loss: str) -> MPlusModules:
    modules = method.modules(lm)
    if loss == TRAINED:
        return modules
    other = MPlusModules.beside(lm, method.config.key_width, method.config.pool_rows)
    other.load_retriever(Path(loss))
    return other


def _write(reader: PoolReader, facts: Sequence[FactQuestion], options: Options, bar: Bar, label: str) -> None:
    limit, done = reader.method.reference_tokens(), 0
    for fact in facts:
        reader.write(fact.chunks)
    stream = other_texts(options.distractors, options.seed, reader.lm.count_tokens, limit)
    with bar(label, options.tokens) as advance:
        while done < options.tokens:
            text, size = next(stream)
            reader.write([text])
            done += size
            advance(size)


def _figures(reader: PoolReader, facts: Sequence[FactQuestion], choice: str, options: Options) -> dict[str, float]:
    """`recall`: the share of a fact's rows in long-term memory that were retrieved; `chance`: of random retrieval.

    `pairs`: the number of pairs of a question and a layer with rows of the fact in long-term memory.
    """
    recalls: list[float] = []
    chances: list[float] = []
    for start in range(0, len(facts), options.batch_size):
        part = range(start, min(start + options.batch_size, len(facts)))
        chosen = _choice(reader, choice, start, options.seed)
        prefix = reader.look([facts[i].question for i in part], chosen)
        for b, number in enumerate(part):
            shares = _shares(reader, prefix, b, number)
            recalls += [share for share, _ in shares]
            chances += [chance for _, chance in shares]
    return {"recall": _mean(recalls), "chance": _mean(chances), "pairs": len(recalls)}


def _choice(reader: PoolReader, name: str, start: int, seed: int) -> Ranker:
    if name == "oracle":
        return oracle(lambda b: reader.born(start + b))
    K = reader.method.config.write_rows
    known = {"writes": by_write(K), "rows": trained, "attended": attended, "recent": recent, "random": at_random(seed)}
    return known[name]


def _shares(reader: PoolReader, prefix: PoolPrefix, b: int, number: int) -> list[tuple[float, float]]:
    """(share retrieved, share of random retrieval) of each layer with rows of this fact in long-term memory."""
    shares, long = [], reader.pool.long
    for layer in range(reader.lm.dims.num_layers):
        own_M = torch.isin(long.blocks.born(layer), reader.born(number)) & long.alive(layer)
        if own_M.any():
            read_N = prefix.chosen[layer][b]
            shares.append((float(own_M[read_N].sum() / own_M.sum()), len(read_N) / int(long.alive(layer).sum())))
    return shares


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
