"""A bank as a dict: what `remanence.bank` must do, without a disk, an index or a lock."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass


@dataclass
class Entry:
    """One live chunk."""

    text: str
    expires: float
    supersedes: str | None = None
    vector: tuple[float, ...] | None = None
    memory: int | None = None


class ReferenceBank:
    """Ids, doubles, expiry, supersession and forgetting of one namespace. `expires` math.inf: never."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.entries: dict[str, Entry] = {}
        self.now = 0.0

    def id(self, text: str) -> str:
        return hashlib.sha256(f"{self.namespace}\0{text}".encode()).hexdigest()[:16]

    def pass_time(self, now: float) -> None:
        """What has expired is as good as forgotten."""
        self.now = now
        self.forget([id for id, entry in self.entries.items() if entry.expires <= now])

    def add(self, text: str, expires: float = math.inf, supersedes: str | None = None) -> tuple[str, bool]:
        """A text that is there already keeps its entry, the longer promise, and takes the new `supersedes`."""
        id, is_new = self.id(text), self.id(text) not in self.entries
        if is_new:
            self.entries[id] = Entry(text, expires)
        entry = self.entries[id]
        entry.expires = max(entry.expires, expires)
        if supersedes is not None:
            self._release(id)
            entry.supersedes = supersedes
        if entry.expires <= self.now:
            self.forget([id])
        return id, is_new

    def forget(self, ids: list[str]) -> None:
        for id in ids:
            self.entries.pop(id, None)
            self._release(id)

    def visible(self) -> dict[str, Entry]:
        """Not superseded by anything that is still there."""
        hidden = {entry.supersedes for entry in self.entries.values()}
        return {id: entry for id, entry in self.entries.items() if id not in hidden}

    def find(self, word: str) -> set[str]:
        return {id for id, entry in self.visible().items() if word in entry.text.split()}

    def _release(self, id: str) -> None:
        for entry in self.entries.values():
            if entry.supersedes == id:
                entry.supersedes = None
