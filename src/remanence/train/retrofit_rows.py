"""Rows that give any model memory: questions as its own chat template has them, and running text."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from remanence.data.facts import TRAIN
from remanence.lm.lm import LM
from remanence.methods.base import text_layout
from remanence.train.batches import pack
from remanence.train.chat_rows import Asked, ChatBatch, Texts
from remanence.train.corpora import Corpora
from remanence.train.losses import ANSWER, TEXT
from remanence.train.recipes.nano import Phase
from remanence.train.recipes.retrofit import RetrofitRecipe
from remanence.train.row import Row
from remanence.train.rows import Encoder, book_row, draw_row

PAD = 0
"""Stands behind all text, which never sees what follows it: any token does."""


def draw_questions(
    rng: Random, recipe: RetrofitRecipe, lm: LM, corpora: Corpora, encoder: Encoder, split: str = TRAIN
) -> Texts:
    """`groups` rows of the mixture that have questions; of the split "heldout" only the generator's."""
    shares = {"squad": recipe.squad, "babi": recipe.babi} if split == TRAIN else {}
    shape, texts, groups = Phase(0, 1, 0, recipe.passages, recipe.facts, **shares), Texts(), 0
    while groups < recipe.groups:
        row = draw_row(rng, shape, corpora, encoder, split)
        told = [number for number in range(len(row.pairs)) if _is_told(row, number, lm, recipe.reference_tokens)]
        groups += bool(told)
        for number in rng.sample(told, min(recipe.questions, len(told))):
            seen = tuple(texts.place(text) for text in rng.sample(row.references, len(row.references)))
            question, answer = row.pairs[number]
            texts.asked.append(Asked(({"role": "user", "content": question},), answer, "", seen))
    return texts


def _is_told(row: Row, number: int, lm: LM, limit: int) -> bool:
    """False where the answer stands in what is cut off from its reference."""
    text, answer = row.references[row.places[number]], row.pairs[number][1]
    ids = lm.encode(text)
    return len(ids) <= limit or answer not in text or answer in lm.decode(ids[:limit])


def pack_questions(lm: LM, texts: Texts, recipe: RetrofitRecipe, *, as_text: bool = False) -> ChatBatch:
    """One question a row, its answer alone is learned. `as_text`: references stand in the prompt, none is written."""
    rows, seen = [], []
    for asked in texts.asked:
        shown = [_cut(lm, texts.references[i], recipe) for i in asked.references] if as_text else []
        prompt = text_layout(lm, shown, lm.render(asked.messages))
        said = answer_ids(lm, asked.answer)
        rows.append(([*prompt, *said], [0] * len(prompt) + [ANSWER] * len(said)))
        seen.append(() if as_text else asked.references)
    references = [] if as_text else [lm.encode(text)[: recipe.reference_tokens] for text in texts.references]
    return _packed(lm, references, seen, rows)


def _cut(lm: LM, text: str, recipe: RetrofitRecipe) -> str:
    ids = lm.encode(text)
    return text if len(ids) <= recipe.reference_tokens else lm.decode(ids[: recipe.reference_tokens])


def answer_ids(lm: LM, answer: str) -> list[int]:
    """As the model should say it, up to what ends an answer: its stop string (a line feed), or the end of its turn."""
    if lm.stop:
        return lm.encode(f" {answer}{lm.stop[0]}")
    own = lm.tokenizer.eos_token_id
    end = [own] if own is not None else sorted(lm.eos)[:1]
    return [*lm.encode(answer if lm.tokenizer.chat_template else f" {answer}"), *(end or lm.encode("\n"))]


def draw_texts(rng: Random, recipe: RetrofitRecipe, paragraphs: Sequence[str]) -> list[Row]:
    """Running text with references from the paragraphs before it; none where there are no books."""
    if len(paragraphs) < 2:
        return []
    return [book_row(rng, paragraphs, recipe.text_references) for _ in range(recipe.texts)]


def pack_texts(lm: LM, rows: Sequence[Row], recipe: RetrofitRecipe, *, alone: bool = False) -> ChatBatch:
    """A row is cut at `text_tokens`. `alone`: nothing is read beside it."""
    texts = Texts()
    seen = [() if alone else tuple(texts.place(text) for text in row.references) for row in rows]
    ids = [[*lm.bos, *lm.encode(row.plain)][: recipe.text_tokens] for row in rows]
    kinds = [[0] * len(lm.bos) + [TEXT] * (len(row) - len(lm.bos)) for row in ids]
    references = [lm.encode(text)[: recipe.reference_tokens] for text in texts.references]
    return _packed(lm, references, seen, list(zip(ids, kinds, strict=True)))


def _packed(
    lm: LM,
    references: list[list[int]],
    seen: list[tuple[int, ...]],
    rows: list[tuple[list[int], list[int]]],
) -> ChatBatch:
    batch = pack(rows, max(len(ids) for ids, _ in rows), PAD)
    return ChatBatch(references, seen, batch.ids_BT.to(lm.device), batch.kind_BT.to(lm.device))
