"""A bank in a dictionary: the searches of the real one, slow and obvious."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from remanence.types import Chunk


class FakeBank:
    def __init__(self, *texts: str) -> None:
        self.chunks = {chunk.id: chunk for chunk in map(make_chunk, texts)}
        self.vectors: dict[tuple[str, str], np.ndarray] = {}

    def search_text(self, query: str, limit: int) -> list[tuple[str, float]]:
        wanted = set(query.lower().replace("?", "").split())
        scores = {id: len(wanted & set(chunk.text.lower().split())) for id, chunk in self.chunks.items()}
        ranked = sorted((id for id in scores if scores[id]), key=scores.__getitem__, reverse=True)
        return [(id, float(scores[id])) for id in ranked[:limit]]

    def search_vector(self, vector_E: np.ndarray, embedder: str, limit: int) -> list[tuple[str, float]]:
        rows = [(id, float(vector @ vector_E)) for (name, id), vector in self.vectors.items() if name == embedder]
        return sorted(rows, key=lambda row: row[1], reverse=True)[:limit]

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        return [self.chunks[id] for id in ids]

    def missing_vectors(self, embedder: str) -> list[str]:
        return [id for id in self.chunks if (embedder, id) not in self.vectors]

    def put_vectors(self, embedder: str, ids: Sequence[str], vector_NE: np.ndarray) -> None:
        self.vectors |= {(embedder, id): vector for id, vector in zip(ids, vector_NE, strict=True)}


def make_chunk(text: str) -> Chunk:
    id = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Chunk(id, "default", text, len(text.split()), "notes.txt", 0, len(text), created=0.0)


class ColourEmbedder:
    """Knows that scarlet is red and navy is blue; everything else is grey."""

    name = "colours"
    dim = 3
    MEANING: ClassVar = {"red": 0, "scarlet": 0, "blue": 1, "navy": 1}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vector_NE = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(vector_NE, texts, strict=True):
            for word in text.lower().replace("?", "").replace(".", "").split():
                row[self.MEANING.get(word, 2)] += 100 if word in self.MEANING else 1
            row /= max(float(np.linalg.norm(row)), 1e-9)
        return vector_NE
