from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from remanence.errors import InputError, MissingExtra
from remanence.text.embed import SentenceTransformers


class FakeModel:
    def __init__(self, name, device=None):
        if name == "nowhere":
            raise OSError("no such model")

    def get_sentence_embedding_dimension(self):
        return 4

    def encode(self, texts, normalize_embeddings, **options):
        assert normalize_embeddings
        assert not options["show_progress_bar"]
        return np.tile(np.array([0.6, 0.8, 0, 0]), (len(texts), 1))


@pytest.fixture
def fake(monkeypatch):
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = FakeModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_rows_are_float32_and_of_unit_length(fake):
    embedder = SentenceTransformers("small")
    vector_NE = embedder.embed(["a", "b", "c"])
    assert (vector_NE.shape, vector_NE.dtype, embedder.dim, embedder.name) == ((3, 4), np.float32, 4, "small")
    assert np.allclose(np.linalg.norm(vector_NE, axis=1), 1)
    assert embedder.embed([]).shape == (0, 4)


def test_an_unknown_model_is_one_line(fake):
    with pytest.raises(InputError, match="'nowhere' cannot be loaded"):
        SentenceTransformers("nowhere")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"\.\[embed\]"):
        SentenceTransformers()
