"""Forgetting, expiry, compaction and numbers: what keeps a bank exact and small."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from remanence.bank import answers as kept_answers
from remanence.bank import chunks, compaction, memories, pool_files
from remanence.bank.answers import Answer, Answers
from remanence.bank.context import BankContext, in_parts
from remanence.bank.memories import Memories
from remanence.bank.reports import BankStats, CompactReceipt
from remanence.bank.rows import Row, any_of
from remanence.bank.search import Search
from remanence.bank.store import CHUNKS_TABLE
from remanence.bank.usage import RecallCounts
from remanence.types import ForgetReceipt


@dataclass(frozen=True)
class BankParts:
    """All that one open bank has: on disk through `context`, and in RAM."""

    context: BankContext
    memories: Memories
    search: Search
    counts: RecallCounts
    answers: Answers

    @property
    def folder(self) -> Path | None:
        return self.context.store.folder


def forget(parts: BankParts, ids: Sequence[str]) -> ForgetReceipt:
    """See `Bank.forget`."""
    with parts.context.store.writing():
        rows = chunks.require_live(parts.context, ids)
        num_memories, num_answers = _remove(parts, list(rows.values()))
        parts.counts.flush()
        exact = not _derived_from(parts, rows)
    return ForgetReceipt(tuple(rows), num_memories, exact, parts.folder is None, num_answers)


def _remove(parts: BankParts, rows: Sequence[Row]) -> tuple[int, int]:
    """Removes chunks and all that was made of them; returns how many memories and answers.

    Tensors and answers go first: after a crash in between, the text is still there to be forgotten. Answers go once
    more after it: one may have been given meanwhile (see `Answers`).
    """
    if not rows:
        return 0, 0
    context, num_memories = parts.context, 0
    ids = [row.chunk.id for row in rows]
    meta = context.store.meta
    for part in in_parts(ids):
        condition = context.where(any_of("id", part))
        for name in meta.of_kind("vectors"):
            context.delete(name, condition)
        num_memories += sum(context.delete(name, condition) for name in meta.of_kind("memories"))
        parts.counts.forget(part, condition)
    num_answers = _remove_answers(parts, set(ids))
    parts.memories.cache.discard(ids)
    pool_files.remove_pools(parts.folder, context.namespace)
    chunks.remove(context, ids)
    context.chunk_rows.clear()
    parts.memories.clear_rows()
    parts.search.clear()
    num_answers += _remove_answers(parts, set(ids), rows)
    return num_memories, num_answers


def _remove_answers(parts: BankParts, ids: set[str], rows: Iterable[Row] = ()) -> int:
    """Removes answers that recalled one of `ids`, or that hold a string that only `rows`, removed by now, had."""
    answers = parts.answers.all()
    if not answers:
        return parts.answers.remove(lambda answer: False)  # what is there cannot be read
    candidates = kept_answers.strings_in(answers, compaction.strings_of(rows))
    strings = compaction.unique_strings(parts.context, candidates)

    def is_gone(answer: Answer) -> bool:
        return not answer.sources.isdisjoint(ids) or bool(kept_answers.strings_in([answer], strings))

    return parts.answers.remove(is_gone)


def _derived_from(parts: BankParts, ids: Collection[str]) -> list[str]:
    """What is still to be recalled of chunks that were removed: names of tables, pools and answers."""
    context, ids = parts.context, list(ids)
    tables = [name for name in context.store.meta.tables if ids and context.ids_in(name, ids)]
    pools = [file.name for file in pool_files.pool_files(parts.folder, context.namespace)] if ids else []
    answers = [kept_answers.FILE for answer in parts.answers.all() if not answer.sources.isdisjoint(ids)]
    return tables + pools + answers


def keep_pool(parts: BankParts, fingerprint: str, ids: Collection[str], write: Callable[[Path], None]) -> bool:
    """See `Bank.keep_pool`. Writers wait meanwhile, so that nobody forgets a text while its rows are written."""
    file = pool_files.pool_file(parts.folder, parts.context.namespace, fingerprint)
    if file is None:
        return False
    with parts.context.store.writing():
        pool_files.remove_unfinished(parts.folder)
        if set(ids) - parts.context.live(set(ids)).keys():
            return False
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file)
    return True


def live_answers(parts: BankParts, limit: int) -> list[Answer]:
    """See `Bank.answers`."""
    namespace = parts.context.namespace
    ids = set[str]().union(*(each.sources for each in parts.answers.last(namespace, kept_answers.KEEP)))
    if gone := ids - parts.context.live(ids).keys():
        parts.answers.remove(lambda answer: answer.namespace == namespace and not answer.sources.isdisjoint(gone))
    return parts.answers.last(namespace, limit)


def expire(parts: BankParts) -> int:
    """See `Bank.expire`."""
    context = parts.context
    with context.store.writing():
        ids = chunks.live_ids(context, f"expires <= {context.clock()!r}")
        _remove(parts, context.find("id", ids))
    return len(ids)


def compact(parts: BankParts) -> CompactReceipt:
    """See `Bank.compact`; `compaction.leftovers` says what is proven, and how."""
    began, context = time.perf_counter(), parts.context
    store, before = context.store, compaction.disk_bytes(parts.folder)
    with store.writing():
        num_expired = expire(parts)
        num_orphans = compaction.delete_orphans(context)
        parts.counts.flush()
        rows = compaction.removed_rows(context)
        traces = compaction.traces_of(context, rows)
        compaction.drop_unlisted(store)
        old_files = compaction.files_of_dirty_tables(store)
        compaction.compact_tables(store)
        compaction.remove_unfinished(parts.folder)
        pool_files.remove_unfinished(parts.folder)
        _remove_answers(parts, _ids_without_chunk(parts) | traces.ids, rows)
        left = compaction.leftovers(context, old_files, traces)
    return CompactReceipt(
        num_expired=num_expired,
        num_orphans=num_orphans,
        bytes_before=before,
        bytes_after=compaction.disk_bytes(parts.folder),
        bytes_gone=not left,
        seconds=time.perf_counter() - began,
        left=tuple(left),
    )


def _ids_without_chunk(parts: BankParts) -> set[str]:
    """Ids that answers of any namespace recalled, and whose chunks were removed, by whatever version of this code."""
    ids = set[str]().union(*(answer.sources for answer in parts.answers.all()))
    for part in in_parts(sorted(ids)):
        table = parts.context.read_columns(CHUNKS_TABLE, any_of("id", part), ["id"])
        ids -= set() if table is None else set(table["id"].to_pylist())
    return ids


def stats(parts: BankParts) -> BankStats:
    """See `Bank.stats`."""
    context, cache = parts.context, parts.memories.cache
    num_visible, num_live = (
        context.count(CHUNKS_TABLE, condition) for condition in (context.is_visible(), context.is_live())
    )
    descriptions = parts.memories.fingerprints()
    counts = {fingerprint: parts.memories.count(fingerprint) for fingerprint in descriptions}
    pools = pool_files.pool_files(parts.folder, context.namespace)
    tokens = context.read_columns(CHUNKS_TABLE, context.where(context.is_visible()), ["num_tokens"])
    return BankStats(
        namespace=context.namespace,
        format=context.store.meta.format,
        num_chunks=num_visible,
        num_superseded=num_live - num_visible,
        num_expired=context.count(CHUNKS_TABLE) - num_live,
        num_tokens=0 if tokens is None else sum(tokens["num_tokens"].to_pylist()),
        num_recalls=sum(count for count, _ in parts.counts.counts().values()),
        memories=counts,
        descriptions=descriptions,
        vectors=memories.num_vectors(context),
        bytes_per_memory=parts.memories.mean_bytes(max(counts, key=counts.__getitem__)) if counts else 0.0,
        disk_bytes=compaction.disk_bytes(parts.folder),
        ram_bytes=cache.num_bytes,
        ram_row_bytes=parts.memories.row_bytes + parts.search.row_bytes,
        ram_limit_bytes=cache.limit_bytes,
        ram_memories=len(cache),
        ram_hits=cache.hits,
        ram_misses=cache.misses,
        text_index=asdict(context.store.meta.text_index),
        num_pools=len(pools),
        pool_bytes=pool_files.num_bytes(pools),
    )
