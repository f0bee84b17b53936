"""Training examples of retrofit: questions in the model's own chat template, and running text."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from remanence.data.facts import TRAIN
from remanence.lm.lm import LM
from remanence.methods.base import text_layout
from remanence.train.core.losses import ANSWER, TEXT
from remanence.train.examples.batches import pack
from remanence.train.examples.chat import ChatBatch, ChatExamples, ChatQuestion
from remanence.train.examples.corpora import Corpora
from remanence.train.examples.mixture import Encoder, Example, book_example, draw_example
from remanence.train.recipes.nano import NanoPhase
from remanence.train.recipes.retrofit import RetrofitRecipe

PAD = 0
"""Padding behind the text, which does not attend to it, so that any token will do."""


def draw_questions(
    rng: Random, recipe: RetrofitRecipe, lm: LM, corpora: Corpora, encoder: Encoder, split: str = TRAIN
) -> ChatExamples:
    """Questions about `groups` examples of the mixture; the split "heldout" has only generated ones."""
    squad, babi = (recipe.squad, recipe.babi) if split == TRAIN else (0.0, 0.0)
    phase = NanoPhase(0, 1, 0, recipe.passages, recipe.facts, squad=squad, babi=babi)
    examples, groups = ChatExamples(), 0
    while groups < recipe.groups:
        example = draw_example(rng, phase, corpora, encoder, split)
        answerable = [number for number in range(len(example.pairs)) if _is_whole(example, number, lm, recipe)]
        groups += bool(answerable)
        for number in rng.sample(answerable, min(recipe.questions, len(answerable))):
            places = tuple(examples.place(text) for text in rng.sample(example.references, len(example.references)))
            question, answer = example.pairs[number]
            messages = ({"role": "user", "content": question},)
            examples.questions.append(ChatQuestion(messages, answer, "", places))
    return examples


def _is_whole(example: Example, number: int, lm: LM, recipe: RetrofitRecipe) -> bool:
    """False if the answer is in the part of its reference that is cut off."""
    text, answer = example.references[example.places[number]], example.pairs[number][1]
    ids, limit = lm.encode(text), recipe.reference_tokens
    return len(ids) <= limit or answer not in text or answer in lm.decode(ids[:limit])


def pack_questions(lm: LM, examples: ChatExamples, recipe: RetrofitRecipe, *, as_text: bool = False) -> ChatBatch:
    """One question per row; only its answer carries a loss. `as_text`: the references stand in the prompt instead."""
    rows, read = [], []
    for question in examples.questions:
        shown = [_cut(lm, examples.references[i], recipe) for i in question.references] if as_text else []
        prompt = text_layout(lm, shown, lm.render(question.messages))
        answer = answer_ids(lm, question.answer)
        rows.append(([*prompt, *answer], [0] * len(prompt) + [ANSWER] * len(answer)))
        read.append(() if as_text else question.references)
    references = [] if as_text else _encode_references(lm, examples, recipe)
    return _packed(lm, references, read, rows)


def _cut(lm: LM, text: str, recipe: RetrofitRecipe) -> str:
    ids = lm.encode(text)
    return text if len(ids) <= recipe.reference_tokens else lm.decode(ids[: recipe.reference_tokens])


def answer_ids(lm: LM, answer: str) -> list[int]:
    """The tokens of an answer and of what ends it: the model's stop string (a line feed), or its end of turn."""
    if lm.stop:
        return lm.encode(f" {answer}{lm.stop[0]}")
    eos = lm.tokenizer.eos_token_id
    end = [eos] if eos is not None else sorted(lm.eos)[:1]
    return [*lm.encode(answer if lm.tokenizer.chat_template else f" {answer}"), *(end or lm.encode("\n"))]


def draw_text_examples(rng: Random, recipe: RetrofitRecipe, paragraphs: Sequence[str]) -> list[Example]:
    """Running text with references from the paragraphs before it; an empty list if there are no books."""
    if len(paragraphs) < 2:
        return []
    return [book_example(rng, paragraphs, recipe.text_references) for _ in range(recipe.texts)]


def pack_texts(lm: LM, text_examples: Sequence[Example], recipe: RetrofitRecipe, *, alone: bool = False) -> ChatBatch:
    """One example per row, cut at `text_tokens`. `alone`: without its references."""
    examples = ChatExamples()
    read = [() if alone else tuple(examples.place(text) for text in each.references) for each in text_examples]
    ids = [[*lm.bos, *lm.encode(each.text)][: recipe.text_tokens] for each in text_examples]
    kinds = [[0] * len(lm.bos) + [TEXT] * (len(row) - len(lm.bos)) for row in ids]
    references = _encode_references(lm, examples, recipe)
    return _packed(lm, references, read, list(zip(ids, kinds, strict=True)))


def _encode_references(lm: LM, examples: ChatExamples, recipe: RetrofitRecipe) -> list[list[int]]:
    return [lm.encode(text)[: recipe.reference_tokens] for text in examples.references]


def _packed(
    lm: LM,
    references: list[list[int]],
    read: list[tuple[int, ...]],
    rows: list[tuple[list[int], list[int]]],
) -> ChatBatch:
    batch = pack(rows, max(len(ids) for ids, _ in rows), PAD)
    return ChatBatch(references, read, batch.ids_BT.to(lm.device), batch.kind_BT.to(lm.device))
