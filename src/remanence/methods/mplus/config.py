"""The settings of M+: the paper's choices, the authors' code where it differs, and what is new here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from remanence.errors import InputError
from remanence.methods.mplus import dropping
from remanence.methods.mplus.blocks import Precision
from remanence.methods.mplus.longterm import Eviction
from remanence.methods.mplus.pool import Ages


@dataclass(frozen=True)
class MPlusConfig:
    """Settings of M+ (§3 and Appendix E). Counts of rows are per layer; a row is one memory token of the paper.

    A write reads a chunk of up to `chunk_tokens` tokens and makes `write_rows` rows (the paper's K). The pool holds
    `pool_blocks` times as many (N). A reading adds `long_blocks` times as many (K0) from long-term memory, which
    holds at most `capacity_rows`, or `capacity_bytes` where that is given, and merges after `merge_writes` writes.
    Chunks shorter than `min_chunk_tokens` that were stored together are written together.

    `eviction`, `ages`: "reference" is the authors' code with its errors. `drop`: which rows leave the pool
    (`dropping.POLICIES`). `ranked`: what the retriever ranks, single rows (the paper) or whole writes. `short`: a
    chunk of fewer than K tokens makes K rows, the first of them from rows of the pool (the authors' code), or as many
    rows as it has tokens ("own"). `least_relevance`: a prompt for which the best write of each layer scores less
    (mean over layers) is answered by the plain model; 0 (the paper): every prompt reads. `offload`: the pool stays in
    RAM, and a layer's rows are copied to the accelerator while the layer before it computes. `small_prefix`: keys and
    values of a reading are held as int8.
    """

    chunk_tokens: int = 512
    min_chunk_tokens: int = 16
    write_rows: int = 256
    pool_blocks: int = 40
    long_blocks: int = 10
    key_width: int = 256
    capacity_rows: int = 153_600
    capacity_bytes: int | None = None
    merge_writes: int = 60
    eviction: Eviction = "age"
    ages: Ages = "true"
    initial_frequency: float = 10.0
    decay: float = 1.0
    drop: str = "random"
    ranked: Literal["rows", "writes"] = "rows"
    short: Literal["reference", "own"] = "reference"
    least_relevance: float = 0.0
    precision: Precision = "bfloat16"
    offload: bool = False
    small_prefix: bool = False

    def __post_init__(self) -> None:
        dropping.policy(self.drop)
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} is {getattr(self, name)!r}", f"use one of {', '.join(get_args(kind))}")
        if self.ages == "reference" and (self.ranked == "writes" or self.least_relevance):
            raise InputError(
                'ages="reference" do not say which write a row is of',
                'use ages="true" with ranked="writes" or least_relevance',
            )
        check_capacity(self.capacity_rows, self.write_rows, self.merge_writes)

    @property
    def pool_rows(self) -> int:
        """N: rows of the pool."""
        return self.write_rows * self.pool_blocks

    @property
    def long_slots(self) -> int:
        """K0: rows that a reading takes from long-term memory."""
        return self.write_rows * self.long_blocks


def check_capacity(capacity_rows: int, write_rows: int, merge_writes: int) -> None:
    """Raises InputError where long-term memory has no room for the rows of one write."""
    if capacity_rows < write_rows:
        raise InputError(
            f"a long-term memory of {capacity_rows} rows cannot take the {write_rows} rows of one write",
            f"give it room for {write_rows} rows or more; {write_rows * merge_writes} suit it",
        )
