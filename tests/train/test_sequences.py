"""A sequence whose chunks share references, against the same memories given chunk by chunk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from remanence.errors import InputError
from remanence.lm.lm import LM
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.methods.memory3.method import Group, Memory3, paper
from remanence.train.examples.sequences import Sequences
from remanence.train.memory3.sequences import sequence_loss

CHUNK, CHUNKS = 8, 7


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM(tiny_model(num_layers=4).double(), byte_tokenizer(), "tiny")


@pytest.fixture(scope="module")
def method(lm: LM) -> Memory3:
    return Memory3(replace(paper(lm), chunk_tokens=CHUNK, reference_tokens=24, kept_tokens=4, num_memories=3))


def batch(seed: int = 0, rows: int = 2) -> Sequences:
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(5, 250, (length,), generator=generator).tolist()

    lengths = iter([24, 3, 17, 24, 9, 24, 12] * rows)
    references = [[ids(next(lengths)) for _ in range(CHUNKS)] for _ in range(rows)]
    return Sequences(torch.tensor([ids(CHUNK * CHUNKS) for _ in range(rows)]), references)


def test_shared_references_are_the_same_memories_given_to_each_chunk(lm: LM, method: Memory3) -> None:
    given = batch()
    with torch.no_grad():
        memories = [method.write(lm, row) for row in given.references]
        groups = [[Group(c * CHUNK, tuple(row[max(0, c - 2) : c + 1])) for c in range(CHUNKS)] for row in memories]
        T = CHUNK * CHUNKS
        apart, shared = method.prefix(lm, groups, [T, T]), method.shared_prefix(lm, memories, T)
        assert shared.offset_tokens == apart.offset_tokens
        assert shared.kvs[0].key_BGMD.shape[2] < apart.kvs[0].key_BGMD.shape[2], "each memory stands there once"
        positions_BT = shared.offset_tokens + torch.arange(T)[None].expand(2, -1)
        one, other = (lm.forward(given.ids_BT, prefix, positions_BT) for prefix in (apart, shared))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        logits_BTV = one[:, :-1].flatten(0, 1)
        slow = torch.nn.functional.cross_entropy(logits_BTV.float(), given.ids_BT[:, 1:].flatten())
        torch.testing.assert_close(sequence_loss(lm, given, method), slow, rtol=0, atol=1e-6)


def test_a_reference_is_seen_by_its_chunk_and_the_two_after_it(lm: LM, method: Memory3) -> None:
    given, T = batch(rows=1), CHUNK * CHUNKS
    other = [list(row) for row in given.references]
    other[0][2] = [7] * 20
    logits = []
    with torch.no_grad():
        for references in (given.references, other):
            prefix = method.shared_prefix(lm, [method.write(lm, references[0])], T)
            logits.append(lm.forward(given.ids_BT, prefix, prefix.offset_tokens + torch.arange(T)[None])[0])
    changed_T = (logits[0] - logits[1]).abs().amax(-1) > 1e-9
    assert not changed_T[: 2 * CHUNK].any()
    assert changed_T[2 * CHUNK : 5 * CHUNK].all()


def test_gradients_reach_the_writing_or_do_not(lm: LM, method: Memory3) -> None:
    """Text of one token a chunk could not: the weights of references' tokens alone tell."""
    given = batch(rows=1)
    token = 254
    references = [[[token] * 5 for _ in range(CHUNKS)]]
    for writes in (True, False):
        lm.model.zero_grad()
        sequence_loss(lm, Sequences(given.ids_BT, references), method, writes=writes).backward()
        gradient = lm.model.model.embed_tokens.weight.grad[token]
        tied = lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
        assert not tied, "a tied head would reach it by itself"
        assert bool(gradient.any()) is writes
    lm.model.zero_grad()
    plain = sequence_loss(lm, Sequences(given.ids_BT, []))
    torch.testing.assert_close(plain, lm.model(given.ids_BT, labels=given.ids_BT).loss, rtol=0, atol=1e-6)


def test_rows_without_a_reference_for_each_chunk_are_refused(lm: LM, method: Memory3) -> None:
    given = batch(rows=1)
    with pytest.raises(InputError, match="56 tokens has 6 references -> give one for each of its chunks of 8 tokens"):
        sequence_loss(lm, Sequences(given.ids_BT, [given.references[0][:-1]]), method)
    with pytest.raises(InputError, match="63 tokens has 7 references"):
        sequence_loss(lm, Sequences(torch.ones(1, 63, dtype=torch.long), given.references), method)
    memories = method.write(lm, given.references[0])
    with pytest.raises(InputError, match="56 tokens do not fall into chunks"):
        method.shared_prefix(lm, [memories[:5]], 56)
