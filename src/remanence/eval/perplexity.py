"""The loss on running text with an M+ pool about something else, beside the base model's own loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from remanence.eval.streams import check_files, other_texts
from remanence.generation import read_or_not
from remanence.lm.decode import pad_left
from remanence.lm.lm import LM
from remanence.measurement import Bar, MeasurementOptions, envelope
from remanence.methods import load as load_method
from remanence.methods.mplus.method import MPlus
from remanence.methods.mplus.pool import Pool

LEAD_TOKENS, TEXT_TOKENS = 32, 128
ALWAYS = "full_pool_always_read"
"""The system that reads the full pool for every text, without a test of whether it is about it."""


@dataclass(frozen=True)
class Options(MeasurementOptions):
    """`n` texts of up to one chunk each, from `data` (None: generated).

    `fill_tokens` tokens of generated passages are written into the full pool first.
    """

    n: int = 200
    fill_tokens: int = 20_000
    batch_size: int = 16
    data: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_files(self.data)


def run(lm: LM, options: Options, bar: Bar, folder: Path) -> dict[str, Any]:
    """The envelope with mean loss (nats per token, which M+ calls perplexity) and perplexity of each system.

    The first `LEAD_TOKENS` of a text (half of a shorter text) query the pool; they are not scored. A model without
    latent memory has the system "base" only.
    """
    method = None if lm.latent is None else load_method("mplus", lm)
    assert method is None or isinstance(method, MPlus)
    limit = method.reference_tokens() if method else TEXT_TOKENS
    pools: dict[str, Pool | None] = {"base": None}
    if method:
        other = other_texts(None, options.seed + 1, lm.count_tokens, limit)
        full = _filled(lm, method, method.fresh(lm, options.seed, folder), other, options.fill_tokens, bar)
        pools |= {"fresh_pool": method.fresh(lm), "full_pool": full, ALWAYS: full}
    stream = other_texts(options.data, options.seed, lm.count_tokens, limit)
    texts = [lm.encode(text) for text, _ in islice(stream, options.n)]
    systems = {}
    for name, pool in pools.items():
        with bar(name, len(texts)) as advance:
            losses: list[float] = []
            num_read = 0
            for start in range(0, len(texts), options.batch_size):
                batch = texts[start : start + options.batch_size]
                reads = [pool is not None] * len(batch)
                if pool is not None and method and method.config.least_relevance and name != ALWAYS:
                    reads = method.knows(lm, pool, [text[: _lead(text)] for text in batch])
                num_read += sum(reads)
                for is_read, rows in read_or_not(reads):
                    losses += _losses(lm, method, pool if is_read else None, [batch[row] for row in rows])
                advance(len(batch))
        loss = sum(losses) / len(losses)
        systems[name] = {"loss_nats": loss, "perplexity": exp(loss), "tokens": len(losses), "read": num_read}
    base = systems["base"]
    return envelope(
        "task",
        "perplexity",
        systems,
        n=len(texts),
        seed=options.seed,
        model=lm.name,
        conditions={
            "text": "generated" if options.data is None else options.data.name,
            "fill_tokens": options.fill_tokens,
        },
        ratios={
            f"{name}_{figure}": systems[name][figure] / base[figure]
            for name in pools
            if name != "base"
            for figure in ("loss_nats", "perplexity")
        },
    )


def _filled(lm: LM, method: MPlus, pool: Pool, stream: Iterator[tuple[str, int]], num_tokens: int, bar: Bar) -> Pool:
    done = 0
    with bar("Filling the pool", num_tokens) as advance:
        while done < num_tokens:
            text, size = next(stream)
            pool = method.add(lm, pool, lm.encode(text))
            done += size
            advance(size)
    return pool


@torch.inference_mode()
def _losses(lm: LM, method: MPlus | None, pool: Pool | None, texts: Sequence[list[int]]) -> list[float]:
    """The loss in nats of every token after each text's lead; `pool` None: of the base model, with its BOS."""
    lead = [] if pool is not None else lm.bos
    ids_BT, mask_BT = pad_left([[*lead, *text] for text in texts], lm.device)
    if pool is None or method is None:
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        logits_BTV = lm.forward(ids_BT, None, positions_BT, mask_BT)
    else:
        asks_BT = mask_BT * (mask_BT.cumsum(-1) <= torch.tensor([[_lead(text)] for text in texts], device=lm.device))
        prefix = method.prefix(lm, [pool], asks_BT)
        positions_BT = prefix.offset_tokens + (mask_BT.cumsum(-1) - 1).clamp(min=0)
        logits_BTV = lm.forward(ids_BT, prefix, positions_BT, mask_BT, role=method.role)
    losses: list[float] = []
    for row_TV, ids_T, text in zip(logits_BTV, ids_BT, texts, strict=True):
        losses += _row(row_TV, ids_T, len(text) - _lead(text))
    return losses


def _lead(text: Sequence[int]) -> int:
    return max(1, min(LEAD_TOKENS, len(text) // 2))


def _row(logits_TV: Tensor, ids_T: Tensor, count: int) -> list[float]:
    if count < 1:
        return []
    return functional.cross_entropy(logits_TV[-count - 1 : -1].float(), ids_T[-count:], reduction="none").tolist()
