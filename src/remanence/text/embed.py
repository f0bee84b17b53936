"""Texts to unit vectors: the contract, and any sentence-transformers model behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from remanence.errors import InputError, MissingExtra


class Embedder(Protocol):
    """What dense search needs; a language model that ships with a projection head brings its own.

    It may have a float `min_cosine`: from which similarity on a text is about a question.
    """

    @property
    def name(self) -> str:
        """Vectors of different names are never compared."""
        ...

    @property
    def dim(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, E), each row of length 1, so that a dot product is the cosine."""
        ...


class SentenceTransformers:
    """Any model of sentence-transformers, by default BGE-M3, which Memory³ uses."""

    def __init__(self, model_name: str = "BAAI/bge-m3", device: str | None = None, batch_texts: int = 32) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtra("sentence-transformers", "embed", f"dense search with {model_name!r}") from None
        try:
            self.model = SentenceTransformer(model_name, device=device)
        except (OSError, ValueError) as error:
            hint = "give a folder, or a name that is on the Hub or in its local cache"
            raise InputError(f"{model_name!r} cannot be loaded as an embedding model: {error}", hint) from None
        self.name = model_name
        self.dim = int(self.model.get_sentence_embedding_dimension() or 0)
        self.batch_texts = batch_texts

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        vector_NE = self.model.encode(
            list(texts),
            batch_size=self.batch_texts,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vector_NE, dtype=np.float32)
