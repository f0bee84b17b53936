"""The memories that were used last, in RAM, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from remanence.types import Memory


class MemoryCache:
    """Least recently used goes first; a memory larger than `limit_bytes` is not kept at all."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.num_bytes = self.hits = self.misses = 0
        self._entries: OrderedDict[tuple[str, str], Memory] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, fingerprint: str, id: str) -> Memory | None:
        with self._lock:
            memory = self._entries.get((fingerprint, id))
            if memory is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end((fingerprint, id))
            return memory

    def put(self, fingerprint: str, id: str, memory: Memory) -> None:
        with self._lock:
            self._drop((fingerprint, id))
            size = memory_bytes(memory)
            if size > self.limit_bytes:
                return
            self._entries[fingerprint, id] = memory
            self.num_bytes += size
            while self.num_bytes > self.limit_bytes:
                self._drop(next(iter(self._entries)))

    def discard(self, ids: Iterable[str]) -> None:
        """Drops what every fingerprint made of these chunks."""
        gone = set(ids)
        with self._lock:
            for key in [key for key in self._entries if key[1] in gone]:
                self._drop(key)

    def clear(self, fingerprint: str) -> None:
        with self._lock:
            for key in [key for key in self._entries if key[0] == fingerprint]:
                self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        memory = self._entries.pop(key, None)
        if memory is not None:
            self.num_bytes -= memory_bytes(memory)


def memory_bytes(memory: Memory) -> int:
    """Bytes that a memory holds in RAM, positions included."""
    return memory.num_bytes + memory.index_LGN.nbytes
