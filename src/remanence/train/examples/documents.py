"""Training documents of M+: the chunks that are written, and the sentences that are read with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from remanence.data.facts import PRACTICE
from remanence.train.core.losses import ANSWER, TEXT
from remanence.train.examples.batches import Batch, pack
from remanence.train.examples.corpora import Corpora
from remanence.train.examples.mixture import Encoder, Example, book_example, facts_example, renamed, squad_example
from remanence.train.recipes.nano import NanoPhase
from remanence.train.recipes.nano_mplus import MPlusPhase, MPlusRecipe

SENTENCE_TOKENS = 80
"""The longest sentence, in tokens."""


@dataclass(frozen=True)
class Sentence:
    """Token ids that are read, their kinds as targets (as in `Batch`), and the chunk that they ask for (None: any)."""

    ids: list[int]
    kinds: list[int]
    place: int | None

    @property
    def num_asked(self) -> int:
        """The number of tokens before the answer: those that query the memory."""
        return next((i for i, kind in enumerate(self.kinds) if kind == ANSWER), len(self.kinds))


@dataclass(frozen=True)
class MPlusDocument:
    """`chunks`: token ids of each write, in order. `sentences`: what is read with them."""

    chunks: list[list[int]]
    sentences: list[Sentence]


@dataclass(frozen=True)
class Sentences:
    """Q sentences as one batch. `of_Q`: the document of each; `place_Q`: its chunk, -1 for any (int64).

    `asked_QT` (bool): the tokens that query the memory.
    """

    batch: Batch
    of_Q: Tensor
    place_Q: Tensor
    asked_QT: Tensor


def draw_document(
    rng: Random, phase: MPlusPhase, recipe: MPlusRecipe, corpora: Corpora, encoder: Encoder, num_chunks: int
) -> MPlusDocument:
    """A random document of `num_chunks` chunks: repeated text, a book, SQuAD or facts, by the phase's shares."""
    limit = recipe.method["chunk_tokens"]
    if rng.random() < phase.repeat:
        return repeat_document(rng, corpora, encoder, num_chunks, limit, recipe.sentence_tokens)
    pick = rng.random()
    shape = NanoPhase(0, 1, 0, (num_chunks, num_chunks), 3)
    if pick < phase.books and corpora.paragraphs:
        example = book_example(rng, corpora.paragraphs, num_chunks)
        return _continued(example, encoder, num_chunks, limit, recipe.sentence_tokens)
    if pick < phase.books + phase.squad and corpora.contexts:
        example = squad_example(rng, shape, corpora)
    else:
        example = facts_example(rng, shape, PRACTICE)
    example = renamed(rng, example, corpora, encoder.pieces)
    if corpora.paragraphs and num_chunks > 1 and rng.random() < phase.scattered:
        example = _scattered(rng, example, corpora)
    return MPlusDocument([ids[:limit] for ids in encoder(*example.references)], question_sentences(example, encoder))


def _scattered(rng: Random, example: Example, corpora: Corpora) -> Example:
    """The example with each passage inside a stretch of a book."""
    references = []
    for text in example.references:
        words = rng.choice(corpora.paragraphs).split()[: rng.randint(10, 40)]
        cut = rng.randint(0, len(words))
        references.append(" ".join([*words[:cut], text, *words[cut:]]))
    return Example(references, example.pairs, example.places)


def repeat_document(
    rng: Random, corpora: Corpora, encoder: Encoder, num_chunks: int, limit: int, tokens: int
) -> MPlusDocument:
    """A document whose sentence repeats a part of one chunk after "Repeat:" (M+, authors' code)."""
    texts = corpora.paragraphs or ["no books"]
    chunks = [encoder(rng.choice(texts))[0][: rng.randint(24, limit)] for _ in range(num_chunks)]
    place, lead = rng.randrange(num_chunks), encoder("Repeat:")[0]
    begin = rng.randrange(max(1, len(chunks[place]) - 24))
    repeated = chunks[place][begin : begin + tokens - len(lead)]
    known = min(6, len(repeated) - 1)  # the first tokens are needed to find the place
    kinds = [0] * (len(lead) + known) + [ANSWER] * (len(repeated) - known)
    return MPlusDocument(chunks, [Sentence([*lead, *repeated], kinds, place)])


def _continued(example: Example, encoder: Encoder, num_chunks: int, limit: int, tokens: int) -> MPlusDocument:
    ids = encoder(example.text)[0][:tokens]
    chunks = [ids[:limit] for ids in encoder(*example.references)]
    chunks += [encoder(example.text)[0][:limit] for _ in range(num_chunks - len(chunks))]
    return MPlusDocument(chunks, [Sentence(ids, [TEXT] * len(ids), None)])


def question_sentences(example: Example, encoder: Encoder) -> list[Sentence]:
    """One sentence for each question-answer pair, without BOS, since the pool has its own first vector."""
    prompts = encoder(*(f"Question: {question}\nAnswer:" for question, _ in example.pairs))
    answers = encoder(*(f" {answer}\n" for _, answer in example.pairs))
    return [
        Sentence(q + a, [TEXT] * len(q) + [ANSWER] * len(a), place)
        for q, a, place in zip(prompts, answers, example.places, strict=True)
    ]


def gather_sentences(
    rng: Random, documents: Sequence[MPlusDocument], most: int, pad: int, tokens: int = SENTENCE_TOKENS
) -> Sentences:
    """At most `most` sentences, but at least one of each document that has any, cut at `tokens`."""
    every = [(d, sentence) for d, document in enumerate(documents) for sentence in document.sentences]
    first = {d: at for at, (d, _) in reversed(list(enumerate(every)))}
    others = [at for at in range(len(every)) if at not in first.values()]
    chosen = [*first.values(), *rng.sample(others, max(0, min(len(others), most - len(first))))]
    picked = [every[at] for at in sorted(chosen)]
    T = min(tokens, max(len(sentence.ids) for _, sentence in picked))
    prompts = [[i < sentence.num_asked for i in range(T)] for _, sentence in picked]
    return Sentences(
        pack([(sentence.ids, sentence.kinds) for _, sentence in picked], T, pad),
        torch.tensor([d for d, _ in picked]),
        torch.tensor([-1 if sentence.place is None else sentence.place for _, sentence in picked]),
        torch.tensor(prompts),
    )
