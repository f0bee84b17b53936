"""How many of a fact's rows in long-term memory a question retrieves, after much other text.

As the authors' `ltm/avg_recall`, but of all facts instead of the first chunk, and rows that are staged count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from remanence.errors import InputError
from remanence.eval.pooled import PoolReader
from remanence.eval.run import Bar
from remanence.eval.streams import Fact, check_files, facts_to_keep, other_texts
from remanence.lm.lm import LM
from remanence.methods import load as load_method
from remanence.methods.mplus.dropping import POLICIES
from remanence.methods.mplus.method import MPlus
from remanence.methods.mplus.modules import MPlusModules
from remanence.methods.mplus.prefix import PoolPrefix
from remanence.methods.mplus.rankers import Ranker, at_random, attended, by_write, oracle, recent, trained
from remanence.provenance import commit, machine

CHOICES = ("writes", "rows", "attended", "recent", "random", "oracle")
"""writes: the co-trained retriever asked for whole writes; rows: for single ones, as the authors' code asks."""
TRAINED = "trained"
"""The loss of the retriever that the model folder holds; another is the path of a file that
`train --stage retrievers` wrote."""


@dataclass(frozen=True)
class Options:
    """As for retention; `drops`, `choices` and `losses` are the rows and columns of the table."""

    tokens: int = 160_000
    n: int = 100
    drops: tuple[str, ...] = ("random",)
    choices: tuple[str, ...] = CHOICES
    losses: tuple[str, ...] = (TRAINED,)
    seed: int = 0
    batch_size: int = 32
    data: Path | None = None
    distractors: Path | None = None

    def __post_init__(self) -> None:
        check_files(self.data, self.distractors)
        if not (self.choices and self.drops and self.losses):
            raise InputError("a row or a column of the table is empty", "name at least one drop, choice and loss")
        for given, known in ((self.choices, CHOICES), (self.drops, tuple(POLICIES))):
            if odd := [name for name in given if name not in known]:
                raise InputError(f"there is no {odd[0]!r}", f"use some of {', '.join(known)}")
        if self.tokens < 1 or self.n < 1:
            raise InputError(f"{self.tokens} tokens and {self.n} facts", "use 1 or more of both")


def run(lm: LM, options: Options, bar: Bar, folder: Path) -> dict[str, Any]:
    """`table`: one entry for each loss, drop policy and choice, with the mean over layers and questions."""
    method = load_method("mplus", lm)
    assert isinstance(method, MPlus)
    kept = facts_to_keep(options.data, options.n, options.seed, lm.count_tokens, method.reference_tokens())
    table: list[dict[str, Any]] = []
    retrievers = {loss: _modules(lm, method, loss) for loss in options.losses}  # before anything is computed
    for loss in options.losses:
        for drop in options.drops:
            config = replace(method.config, drop=drop)
            reader = PoolReader(lm, MPlus(config, retrievers[loss]), options.seed, folder)
            _write(reader, kept, options, bar, f"retriever {loss}, drop {drop}")
            for choice in options.choices:
                figures = _figures(reader, kept, choice, options)
                table.append({"loss": loss, "drop": drop, "choice": choice, **figures})
            reader.close()
    first = (options.losses[0], options.drops[0])
    return {
        "task": "ltm-recall",
        "n": len(kept),
        "seed": options.seed,
        "commit": commit(),
        "machine": machine(),
        "model": lm.name,
        "conditions": {"tokens": options.tokens, "slots": method.config.long_slots},
        "recall": {row["choice"]: row["recall"] for row in table if (row["loss"], row["drop"]) == first},
        "table": table,
    }


def _modules(lm: LM, method: MPlus, loss: str) -> MPlusModules:
    modules = method.modules(lm)
    if loss == TRAINED:
        return modules
    other = MPlusModules.beside(lm, method.config.key_width, method.config.pool_rows)
    other.load_retriever(Path(loss))
    return other


def _write(reader: PoolReader, kept: Sequence[Fact], options: Options, bar: Bar, label: str) -> None:
    limit, done = reader.method.reference_tokens(), 0
    for item in kept:
        reader.write(item.chunks)
    stream = other_texts(options.distractors, options.seed, reader.lm.count_tokens, limit)
    with bar(label, options.tokens) as advance:
        while done < options.tokens:
            text, size = next(stream)
            reader.write([text])
            done += size
            advance(size)


def _figures(reader: PoolReader, kept: Sequence[Fact], choice: str, options: Options) -> dict[str, float]:
    """`recall`: share of a fact's rows that are in long-term memory and were retrieved; `chance`: by drawing lots.

    A pair of a question and a layer counts where the layer has any of the fact's rows in long-term memory.
    """
    found: list[float] = []
    chances: list[float] = []
    for start in range(0, len(kept), options.batch_size):
        part = range(start, min(start + options.batch_size, len(kept)))
        chosen = _choice(reader, choice, start, options.seed)
        prefix = reader.look([kept[i].question for i in part], chosen)
        for b, number in enumerate(part):
            shares = _shares(reader, prefix, b, number)
            found += [share for share, _ in shares]
            chances += [chance for _, chance in shares]
    return {"recall": _mean(found), "chance": _mean(chances), "pairs": len(found)}


def _choice(reader: PoolReader, name: str, start: int, seed: int) -> Ranker:
    if name == "oracle":
        return oracle(lambda b: reader.born(start + b))
    K = reader.method.config.write_rows
    known = {"writes": by_write(K), "rows": trained, "attended": attended, "recent": recent, "random": at_random(seed)}
    return known[name]


def _shares(reader: PoolReader, prefix: PoolPrefix, b: int, number: int) -> list[tuple[float, float]]:
    """(share retrieved, that of drawing lots) of every layer that has rows of this fact in long-term memory."""
    shares, long = [], reader.pool.long
    for layer in range(reader.lm.dims.num_layers):
        own_M = torch.isin(long.blocks.born(layer), reader.born(number)) & long.alive(layer)
        if own_M.any():
            read_N = prefix.chosen[layer][b]
            shares.append((float(own_M[read_N].sum() / own_M.sum()), len(read_N) / int(long.alive(layer).sum())))
    return shares


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
