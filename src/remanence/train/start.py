"""Prepares a run from a recipe and a data folder: tokenizer, corpora, model, optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from transformers import PreTrainedTokenizerFast

from remanence.train.corpora import Corpora, load_corpora
from remanence.train.loop import Run
from remanence.train.model import build_model
from remanence.train.optimizer import Optimizer
from remanence.train.recipes.nano import Recipe
from remanence.train.rows import Encoder
from remanence.train.tokenizer import generator_texts, train_tokenizer


def start_run(recipe: Recipe, data: Path | None, folder: Path) -> Run:
    """A run at step 0; the tokenizer in `folder` is used again, or trained and kept there."""
    folder.mkdir(parents=True, exist_ok=True)
    corpora = load_corpora(data)
    encoder = Encoder(load_or_train_tokenizer(recipe, corpora, folder / "tokenizer"))
    model = build_model(recipe.shape, recipe.seed)
    return Run(recipe, model, Optimizer(model, recipe), encoder, corpora, folder)


def load_or_train_tokenizer(recipe: Recipe, corpora: Corpora, folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(_texts(recipe, corpora), recipe.shape.vocab_size).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _texts(recipe: Recipe, corpora: Corpora) -> Iterator[str]:
    yield from generator_texts(recipe.seed, recipe.tokenizer_groups)
    count = min(recipe.tokenizer_paragraphs, len(corpora.paragraphs))
    yield from Random(recipe.seed).sample(corpora.paragraphs, count)
    for context in corpora.contexts:
        yield from (context.text,) * 3
