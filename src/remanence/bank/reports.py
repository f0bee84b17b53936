"""Reports of a bank: numbers, and what a compaction or a check did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CompactReceipt:
    """What a compaction did. `num_orphans` rows had no chunk.

    `bytes_gone`: it was checked that no file of the bank holds a byte of what was removed: text, source, metadata,
    memories, vectors, and answers kept for `why`. `left`: tables and files that may, where it is False.
    """

    num_expired: int
    num_orphans: int
    bytes_before: int
    bytes_after: int
    bytes_gone: bool
    seconds: float
    left: Sequence[str] = ()


@dataclass(frozen=True)
class VerifyReport:
    """What a check found. `num_recomputed` memories were made from their text again and compared."""

    num_chunks: int
    num_memories: int
    num_vectors: int
    num_files: int
    num_recomputed: int
    problems: Sequence[str]
    num_pools: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class BankStats:
    """One namespace in numbers; `disk_bytes` is of the whole bank.

    `num_chunks` may be found by a search; `num_superseded` are hidden, `num_expired` not yet purged.
    `memories` maps fingerprint to number of memories, `descriptions` to what made them. `num_pools` latent pools have
    files of `pool_bytes` beside the bank.
    """

    namespace: str
    format: int
    num_chunks: int
    num_superseded: int
    num_expired: int
    num_tokens: int
    num_recalls: int
    memories: Mapping[str, int]
    descriptions: Mapping[str, Mapping[str, object]]
    vectors: Mapping[str, int]
    bytes_per_memory: float
    disk_bytes: int
    ram_bytes: int
    ram_row_bytes: int
    ram_limit_bytes: int
    ram_memories: int
    ram_hits: int
    ram_misses: int
    text_index: Mapping[str, object] = field(default_factory=dict)
    num_pools: int = 0
    pool_bytes: int = 0
