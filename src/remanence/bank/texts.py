"""The table of chunks: what is added, what replaces what, what is forgotten; every change is one commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from remanence.bank.draft import Draft, check_draft, check_ids, content_hash
from remanence.bank.resident import Resident
from remanence.bank.rows import READ, Row, any_of, hidden_until, quote, row_from_dict, rows_from_table, rows_to_table
from remanence.bank.store import CHUNKS_TABLE, Store, Table
from remanence.errors import BankError, InputError, UnknownChunk
from remanence.types import Chunk

LOOKUP_ROWS = 1_000
"""Ids per look-up: a condition of this length is still quick to parse."""

TICK_SECONDS = 1e-6
"""Chunks of one `add` are this far apart, so that lists keep their order."""


@dataclass(frozen=True)
class Scope:
    """One owner's part of a store; whatever runs through `where` cannot reach another's rows."""

    store: Store
    namespace: str
    clock: Callable[[], float]
    resident: Resident

    def where(self, condition: str = "") -> str:
        mine = f"namespace = {quote(self.namespace)}"
        return f"{mine} AND ({condition})" if condition else mine

    def find(self, column: str, values: Iterable[str]) -> list[Row]:
        """Rows of this namespace whose `column` is one of `values`, expired ones too, in no order.

        Few rows have the value, so the namespace is compared here: its index would list the whole namespace.
        """
        values, rows = list(values), []
        held = self.resident.rows() if column == "id" else None
        if held is not None:
            found = held.read([*held.by_ids(values).values()], READ)
            return [row for row in map(row_from_dict, found) if row.chunk.namespace == self.namespace]
        for first in range(0, len(values), LOOKUP_ROWS):
            condition = any_of(column, values[first : first + LOOKUP_ROWS])
            table = self.store.read(
                CHUNKS_TABLE,
                lambda table, condition=condition: table.query().where(condition).select(READ).to_arrow(),
                None,
            )
            rows += rows_from_table(table) if table is not None else []
        return [row for row in rows if row.chunk.namespace == self.namespace]

    def live(self, ids: Iterable[str]) -> dict[str, Row]:
        """By id, without what has expired."""
        now = self.clock()
        return {row.chunk.id: row for row in self.find("id", ids) if not row.expired(now)}


class Change:
    """Rows that one commit will write and remove: read through it, every later step sees the earlier ones."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.now = scope, scope.clock()
        self.rows: dict[str, Row] = {}
        self.changed: dict[str, Row] = {}
        self.removed: set[str] = set()
        self.stored: set[str] = set()

    def read(self, ids: Iterable[str]) -> None:
        missing = [id for id in ids if id not in self.rows]
        found = {row.chunk.id: row for row in self.scope.find("id", missing)}
        self.rows |= found
        self.stored |= found.keys()

    def live(self, id: str) -> Row | None:
        row = self.rows.get(id)
        return None if row is None or row.expired(self.now) or id in self.removed else row

    def put(self, row: Row) -> None:
        self.rows[row.chunk.id] = self.changed[row.chunk.id] = row

    def superseders(self, ids: Sequence[str]) -> dict[str, list[Row]]:
        """Per id the chunks that supersede it once this change is made."""
        found = {row.chunk.id: row for row in self.scope.find("supersedes", ids)} if ids else {}
        self.stored |= found.keys()
        found = {id: self.rows.get(id, row) for id, row in found.items()} | self.changed
        by_target: dict[str, list[Row]] = {id: [] for id in ids}
        for id, row in found.items():
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


def add(scope: Scope, drafts: Sequence[Draft], created: Sequence[float] | None = None) -> list[tuple[str, bool]]:
    """See `Bank.add`. `created`: times to keep, where the drafts come from another bank."""
    for draft in drafts:
        check_draft(draft)
    hashes = [content_hash(scope.namespace, draft.text) for draft in drafts]
    with scope.store.writing():
        change = Change(scope)
        change.read({hash[:16] for hash in hashes} | {draft.supersedes for draft in drafts if draft.supersedes})
        times = created or [change.now + TICK_SECONDS * place for place in range(len(drafts))]
        added = [_add_one(change, *each) for each in zip(drafts, hashes, times, strict=True)]
        _supersede(change, drafts, [id for id, _ in added])
        _commit(change)
    return added


def _add_one(change: Change, draft: Draft, hash: str, created: float) -> tuple[str, bool]:
    id = hash[:16]
    old = change.rows.get(id)
    if old is not None and old.hash != hash:
        raise BankError(f"chunk {id!r} is taken by another text", "change one character of the text")
    if row := change.live(id):
        lasting = _later(row.chunk.expires, draft.expires)
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
        namespace=change.scope.namespace,
        text=draft.text,
        num_tokens=draft.num_tokens,
        source=draft.source,
        start=draft.start,
        end=draft.end,
        created=created,
        expires=draft.expires,
        metadata=dict(draft.metadata),
    )
    change.put(Row(chunk, hash))
    return id, True


def _later(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


def _supersede(change: Change, drafts: Sequence[Draft], ids: Sequence[str]) -> None:
    for draft, id in zip(drafts, ids, strict=True):
        target = draft.supersedes
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


def link(scope: Scope, pairs: Sequence[tuple[str, str]]) -> None:
    """Makes the first of each pair supersede the second, where both are live and the first supersedes nothing yet."""
    with scope.store.writing():
        change = Change(scope)
        change.read({id for pair in pairs for id in pair})
        for id, target in pairs:
            row = change.live(id)
            if row and row.chunk.supersedes is None and change.live(target):
                change.put(row.with_chunk(supersedes=target))
        change.settle([target for _, target in pairs])
        _commit(change)


def remove(scope: Scope, ids: Sequence[str]) -> None:
    """Takes chunks out and makes visible again what only they superseded. The caller holds the lock."""
    change = Change(scope)
    change.read(ids)
    change.removed = set(ids)
    targets = {row.chunk.supersedes for id, row in change.rows.items() if id in change.removed and row.chunk.supersedes}
    change.release(list(ids))
    change.read(targets)
    change.settle(targets)
    _commit(change)


def known(scope: Scope, ids: Sequence[str]) -> dict[str, Row]:
    """Every one of `ids` by id; UnknownChunk names the first that this namespace does not hold."""
    unique = check_ids(list(ids))
    rows = scope.live(unique)
    for id in unique:
        if id not in rows:
            raise UnknownChunk(f"no chunk {id!r} in namespace {scope.namespace!r}", "see `remanence bank list`")
    return rows


def _commit(change: Change) -> None:
    """Ordinary additions are an append; whatever touches older rows is one merge."""
    store, scope, rows = change.scope.store, change.scope, list(change.changed.values())
    table = rows_to_table(rows)
    gone = [any_of("id", part) for part in _parts(sorted(change.removed))]
    if not gone and not change.stored & change.changed.keys():
        if rows:
            store.commit(CHUNKS_TABLE, lambda chunks: chunks.add(table), len(rows))
        return
    store.mark_dirty(CHUNKS_TABLE)

    def merge(chunks: Table) -> Awaitable[Any]:
        builder = chunks.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        if gone:
            builder = builder.when_not_matched_by_source_delete(scope.where(" OR ".join(gone)))
        return builder.execute(table)

    if rows:
        store.commit(CHUNKS_TABLE, merge, len(rows))
    else:
        store.commit(CHUNKS_TABLE, lambda chunks: chunks.delete(scope.where(" OR ".join(gone))))


def _parts(values: list[str]) -> list[list[str]]:
    return [values[first : first + LOOKUP_ROWS] for first in range(0, len(values), LOOKUP_ROWS)]
