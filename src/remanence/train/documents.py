"""Documents for M+: what is written, chunk by chunk, and the sentences that are read with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from remanence.data.facts import PRACTICE
from remanence.train.batches import Batch, pack
from remanence.train.corpora import Corpora
from remanence.train.losses import ANSWER, TEXT
from remanence.train.recipes.nano import Phase
from remanence.train.recipes.nano_mplus import MPlusPhase, MPlusRecipe
from remanence.train.renaming import renamed
from remanence.train.row import Row
from remanence.train.rows import Encoder, _squad, book_row, facts_row

SENTENCE_TOKENS = 80


@dataclass(frozen=True)
class Sentence:
    """Tokens that are read, each with its kind as a target, and which chunk (None: any) holds what they need."""

    ids: list[int]
    kinds: list[int]
    place: int | None

    @property
    def num_asked(self) -> int:
        """Tokens before the first of the answer: what a reading is asked with."""
        return next((i for i, kind in enumerate(self.kinds) if kind == ANSWER), len(self.kinds))


@dataclass(frozen=True)
class MPlusDocument:
    chunks: list[list[int]]
    sentences: list[Sentence]


@dataclass(frozen=True)
class Sentences:
    """Sentences of several documents as one batch; `of_Q` their documents, `place_Q` -1 where any chunk would do."""

    batch: Batch
    of_Q: Tensor
    place_Q: Tensor
    asked_QT: Tensor


def draw_document(
    rng: Random, phase: MPlusPhase, recipe: MPlusRecipe, corpora: Corpora, encoder: Encoder, num_chunks: int
) -> MPlusDocument:
    """A document of `num_chunks` chunks; the same draws give the same one."""
    limit = recipe.method["chunk_tokens"]
    if rng.random() < phase.repeat:
        return repeated(rng, corpora, encoder, num_chunks, limit, recipe.sentence_tokens)
    pick = rng.random()
    plain = Phase(0, 1, 0, (num_chunks, num_chunks), 3)
    if pick < phase.books and corpora.paragraphs:
        row = book_row(rng, corpora.paragraphs, num_chunks)
        return _continued(row, encoder, num_chunks, limit, recipe.sentence_tokens)
    if pick < phase.books + phase.squad and corpora.contexts:
        row = _squad(rng, plain, corpora)
    else:
        row = facts_row(rng, plain, PRACTICE)
    row = renamed(rng, row, corpora, encoder.pieces)
    if corpora.paragraphs and num_chunks > 1 and rng.random() < phase.scattered:
        row = _scattered(rng, row, corpora)
    return MPlusDocument([ids[:limit] for ids in encoder(*row.references)], questions(row, encoder))


def _scattered(rng: Random, row: Row, corpora: Corpora) -> Row:
    """Each passage somewhere inside a stretch of a book."""
    references = []
    for text in row.references:
        words = rng.choice(corpora.paragraphs).split()[: rng.randint(10, 40)]
        cut = rng.randint(0, len(words))
        references.append(" ".join([*words[:cut], text, *words[cut:]]))
    return Row(references, row.pairs, row.places)


def repeated(
    rng: Random, corpora: Corpora, encoder: Encoder, num_chunks: int, limit: int, tokens: int
) -> MPlusDocument:
    """The first chunks said again after "Repeat:" (authors' code)."""
    texts = corpora.paragraphs or ["no books"]
    chunks = [encoder(rng.choice(texts))[0][: rng.randint(24, limit)] for _ in range(num_chunks)]
    place, lead = rng.randrange(num_chunks), encoder("Repeat:")[0]
    begin = rng.randrange(max(1, len(chunks[place]) - 24))
    said = chunks[place][begin : begin + tokens - len(lead)]
    known = min(6, len(said) - 1)  # what is said again must be found first
    kinds = [0] * (len(lead) + known) + [ANSWER] * (len(said) - known)
    return MPlusDocument(chunks, [Sentence([*lead, *said], kinds, place)])


def _continued(row: Row, encoder: Encoder, num_chunks: int, limit: int, tokens: int) -> MPlusDocument:
    ids = encoder(row.plain)[0][:tokens]
    chunks = [ids[:limit] for ids in encoder(*row.references)]
    chunks += [encoder(row.plain)[0][:limit] for _ in range(num_chunks - len(chunks))]
    return MPlusDocument(chunks, [Sentence(ids, [TEXT] * len(ids), None)])


def questions(row: Row, encoder: Encoder) -> list[Sentence]:
    """One sentence for each pair, as an answer is asked for: no BOS, the pool has its own first vector."""
    asked = encoder(*(f"Question: {question}\nAnswer:" for question, _ in row.pairs))
    answered = encoder(*(f" {answer}\n" for _, answer in row.pairs))
    return [
        Sentence(q + a, [TEXT] * len(q) + [ANSWER] * len(a), place)
        for q, a, place in zip(asked, answered, row.places, strict=True)
    ]


def gather(
    rng: Random, documents: Sequence[MPlusDocument], most: int, pad: int, tokens: int = SENTENCE_TOKENS
) -> Sentences:
    """At most `most` sentences, at least one of each document that has any; cut at `tokens`."""
    every = [(d, sentence) for d, document in enumerate(documents) for sentence in document.sentences]
    first = {d: at for at, (d, _) in reversed(list(enumerate(every)))}
    others = [at for at in range(len(every)) if at not in first.values()]
    chosen = [*first.values(), *rng.sample(others, max(0, min(len(others), most - len(first))))]
    picked = [every[at] for at in sorted(chosen)]
    T = min(tokens, max(len(sentence.ids) for _, sentence in picked))
    asked = [[i < sentence.num_asked for i in range(T)] for _, sentence in picked]
    return Sentences(
        pack([(sentence.ids, sentence.kinds) for _, sentence in picked], T, pad),
        torch.tensor([d for d, _ in picked]),
        torch.tensor([-1 if sentence.place is None else sentence.place for _, sentence in picked]),
        torch.tensor(asked),
    )
