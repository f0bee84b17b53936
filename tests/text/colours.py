"""A bank in RAM of a few texts, and an embedder that only knows colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from remanence.bank import Bank, NewChunk


def bank_of(*texts: str) -> Bank:
    bank = Bank.open(None)
    bank.add(
        [
            NewChunk(text=text, num_tokens=len(text.split()), source="notes.txt", start=0, end=len(text))
            for text in texts
        ]
    )
    return bank


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
