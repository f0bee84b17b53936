"""The table of chunks: what is added, what replaces what, what is removed and listed; every change is one commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from remanence.bank.context import BankContext, in_parts
from remanence.bank.new_chunk import NewChunk, check_ids, check_new_chunk, content_hash
from remanence.bank.rows import READ, Row, any_of, hidden_until, quote, rows_from_table, rows_to_table
from remanence.bank.store import CHUNKS_TABLE
from remanence.errors import BankError, InputError, UnknownChunk
from remanence.types import Chunk

TICK_SECONDS = 1e-6
"""Chunks of one `add` are this far apart, so that lists keep their order."""


class Change:
    """Rows that one commit will write and remove. Every step reads through it and sees the earlier ones."""

    def __init__(self, context: BankContext) -> None:
        self.context, self.now = context, context.clock()
        self.rows: dict[str, Row] = {}
        self.changed: dict[str, Row] = {}
        self.removed: set[str] = set()
        self.stored: set[str] = set()

    def read(self, ids: Iterable[str]) -> None:
        missing = [id for id in ids if id not in self.rows]
        stored = {row.chunk.id: row for row in self.context.find("id", missing)}
        self.rows |= stored
        self.stored |= stored.keys()

    def live(self, id: str) -> Row | None:
        row = self.rows.get(id)
        return None if row is None or row.expired(self.now) or id in self.removed else row

    def put(self, row: Row) -> None:
        self.rows[row.chunk.id] = self.changed[row.chunk.id] = row

    def superseders(self, ids: Sequence[str]) -> dict[str, list[Row]]:
        """Per id the chunks that supersede it once this change is made."""
        stored = {row.chunk.id: row for row in self.context.find("supersedes", ids)} if ids else {}
        self.stored |= stored.keys()
        candidates = {id: self.rows.get(id, row) for id, row in stored.items()} | self.changed
        by_target: dict[str, list[Row]] = {id: [] for id in ids}
        for id, row in candidates.items():
            if id not in self.removed and row.chunk.supersedes in by_target:
                by_target[row.chunk.supersedes].append(row)
        return by_target

    def release(self, ids: Sequence[str]) -> None:
        """Nothing supersedes `ids` any more."""
        for rows in self.superseders(ids).values():
            for row in rows:
                self.put(row.with_chunk(supersedes=None))

    def settle(self, ids: Iterable[str]) -> None:
        """Computes anew until when each of `ids` is hidden."""
        ids = [id for id in ids if id in self.rows and id not in self.removed]
        for id, rows in self.superseders(ids).items():
            row, until = self.rows[id], hidden_until(rows)
            if row.hidden_until != until:
                self.put(Row(row.chunk, row.hash, until))


def add(
    context: BankContext, new_chunks: Sequence[NewChunk], created: Sequence[float] | None = None
) -> list[tuple[str, bool]]:
    """See `Bank.add`. `created`: times to keep, where the chunks come from another bank."""
    for new in new_chunks:
        check_new_chunk(new)
    hashes = [content_hash(context.namespace, new.text) for new in new_chunks]
    with context.store.writing():
        change = Change(context)
        change.read({hash[:16] for hash in hashes} | {new.supersedes for new in new_chunks if new.supersedes})
        times = created or [change.now + TICK_SECONDS * place for place in range(len(new_chunks))]
        added = [_add_one(change, *each) for each in zip(new_chunks, hashes, times, strict=True)]
        _supersede(change, new_chunks, [id for id, _ in added])
        _commit(change)
    return added


def _add_one(change: Change, new: NewChunk, hash: str, created: float) -> tuple[str, bool]:
    id = hash[:16]
    old = change.rows.get(id)
    if old is not None and old.hash != hash:
        raise BankError(f"chunk {id!r} is taken by another text", "change one character of the text")
    if row := change.live(id):
        lasting = _later(row.chunk.expires, new.expires)
        if lasting != row.chunk.expires:
            change.put(row.with_chunk(expires=lasting))
            if row.chunk.supersedes:
                change.read([row.chunk.supersedes])
                change.settle([row.chunk.supersedes])
        return id, False
    if old is not None:  # expired, which is as good as forgotten
        change.release([id])
    chunk = Chunk(
        id=id,
        namespace=change.context.namespace,
        text=new.text,
        num_tokens=new.num_tokens,
        source=new.source,
        start=new.start,
        end=new.end,
        created=created,
        expires=new.expires,
        metadata=dict(new.metadata),
    )
    change.put(Row(chunk, hash))
    return id, True


def _later(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


def _supersede(change: Change, new_chunks: Sequence[NewChunk], ids: Sequence[str]) -> None:
    for new, id in zip(new_chunks, ids, strict=True):
        target = new.supersedes
        if target is None:
            continue
        if target == id:
            raise InputError(f"chunk {id!r} cannot supersede itself", "the new text is the same as the old one")
        if change.live(target) is None:
            raise UnknownChunk(f"no chunk {target!r} to supersede", "find its id with `remanence bank search`")
        change.release([id])  # what is said again is true again, whatever replaced it in between
        before = change.rows[id].chunk.supersedes
        change.put(change.rows[id].with_chunk(supersedes=target))
        if before:
            change.read([before])
        change.settle([id, target, *([before] if before else [])])


def link(context: BankContext, pairs: Sequence[tuple[str, str]]) -> None:
    """Makes the first of each pair supersede the second, where both are live and the first supersedes nothing yet."""
    with context.store.writing():
        change = Change(context)
        change.read({id for pair in pairs for id in pair})
        for id, target in pairs:
            row = change.live(id)
            if row and row.chunk.supersedes is None and change.live(target):
                change.put(row.with_chunk(supersedes=target))
        change.settle([target for _, target in pairs])
        _commit(change)


def remove(context: BankContext, ids: Sequence[str]) -> None:
    """Takes chunks out and makes visible again what only they superseded. The caller holds the lock."""
    change = Change(context)
    change.read(ids)
    change.removed = set(ids)
    targets = {row.chunk.supersedes for id, row in change.rows.items() if id in change.removed and row.chunk.supersedes}
    change.release(list(ids))
    change.read(targets)
    change.settle(targets)
    _commit(change)


def require_live(context: BankContext, ids: Sequence[str]) -> dict[str, Row]:
    """Every one of `ids` by id; UnknownChunk names the first that this namespace does not hold."""
    unique = check_ids(list(ids))
    rows = context.live(unique)
    for id in unique:
        if id not in rows:
            raise UnknownChunk(f"no chunk {id!r} in namespace {context.namespace!r}", "see `remanence bank list`")
    return rows


def _commit(change: Change) -> None:
    """Ordinary additions are an append; whatever touches older rows is one merge."""
    store, rows = change.context.store, rows_to_table(change.changed.values())
    removed = " OR ".join(any_of("id", part) for part in in_parts(sorted(change.removed)))
    if removed or change.stored & change.changed.keys():
        store.mark_dirty(CHUNKS_TABLE)
        delete_where = change.context.where(removed) if removed else None
        if rows.num_rows:
            store.commit(CHUNKS_TABLE, lambda table: table.merge(rows, delete_where), rows.num_rows)
        elif delete_where:
            store.commit(CHUNKS_TABLE, lambda table: table.delete(delete_where))
    elif rows.num_rows:
        store.commit(CHUNKS_TABLE, lambda table: table.add(rows), rows.num_rows)


# --- lists ------------------------------------------------------------------------------------


def live_ids(context: BankContext, condition: str | None = None) -> list[str]:
    """Oldest first; chunks of one `add` in their order. `condition` None: all that are live."""
    where = context.where(condition or context.is_live())
    table = context.read_columns(CHUNKS_TABLE, where, ["created", "id"])
    if table is None:
        return []
    # Arrow's own sort takes a tenth of a second to load.
    return [id for _, id in sorted(zip(table["created"].to_pylist(), table["id"].to_pylist(), strict=True))]


def list_chunks(
    context: BankContext, limit: int | None, offset: int, source: str | None, include_superseded: bool
) -> list[Chunk]:
    """See `Bank.list`."""
    condition = context.is_live() if include_superseded else context.is_visible()
    if source is not None:
        condition += f" AND source = {quote(source)}"
    ids = live_ids(context, condition)[max(0, offset) :]
    return [chunk for part in iterate(context, ids[:limit] if limit is not None else ids) for chunk in part]


def iterate(context: BankContext, ids: Sequence[str]) -> Iterator[list[Chunk]]:
    """The chunks of `ids` in their order, up to 1,000 at a time; what went in the meantime is left out."""
    for part in in_parts(ids):
        table = context.read_columns(CHUNKS_TABLE, context.where(any_of("id", part)), READ)
        rows = {row.chunk.id: row.chunk for row in rows_from_table(table)} if table is not None else {}
        yield [rows[id] for id in part if id in rows]
