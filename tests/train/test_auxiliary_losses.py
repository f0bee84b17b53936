"""The losses of looking and keeping, by hand, and the training's writing against the method's own."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

import remanence.train.memory3.continual as memory_module
from remanence.lm.attention import AttentionRecord
from remanence.lm.load import from_transformers
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.methods.memory3.method import Memory3, Memory3Config
from remanence.train.core.losses import ANSWER, TEXT, targets
from remanence.train.examples.batches import pack
from remanence.train.memory3.auxiliary_losses import (
    AuxiliaryTargets,
    SharedWords,
    WordsAfter,
    answer_attention_loss,
    find_targets,
    selection_loss,
    word_attention_loss,
    word_pointing_loss,
)
from remanence.train.memory3.continual import MemoryBatch, read_memories
from remanence.types import ExplicitMemory

NONE = torch.tensor([], dtype=torch.long)
NOTHING = SharedWords(NONE, NONE, torch.zeros(0, 3, dtype=torch.bool))
NOWHERE = WordsAfter(NOTHING, NONE)


def test_answers_are_found_where_they_stand() -> None:
    references = [[[5, 6, 7, 8], [9, 6, 9]], [[1, 2]]]
    ids = [[0, 3, 6, 7, 10, 9, 10], [0, 3, 4, 10, 0, 0, 0]]
    answers = [[False, False, True, True, True, False, False], [False, False, True, True, False, False, False]]
    places = find_targets(references, ids, answers)
    assert places.row_Q.tolist() == [0, 0]
    assert places.position_Q.tolist() == [1, 2]
    assert places.reference_Q.tolist() == [0, 0]
    assert places.token_Q.tolist() == [1, 2]
    assert places.value_RT.tolist() == [[False, True, True, False], [False] * 4, [False] * 4]


def test_an_answer_in_two_references_is_no_target() -> None:
    places = find_targets([[[5, 6], [6, 7]]], [[3, 6, 10]], [[False, True, True]])
    assert len(places.row_Q) == 0
    assert places.value_RT.tolist() == [[False, True], [True, False]]


def test_looking_wants_attention_there_and_nowhere_else_in_memory() -> None:
    index = torch.tensor([[[0, 2]]], dtype=torch.int32)
    memory = ExplicitMemory((0,), torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), index)
    key_BGSD = torch.zeros(1, 1, 1 + 2 + 2, 4)
    key_BGSD[0, 0, 2, 0] = torch.log(torch.tensor(3.0))
    query_BHTD = torch.zeros(1, 1, 2, 4)
    query_BHTD[0, 0, :, 0] = 1.0
    mask = torch.ones(1, 1, 2, 5, dtype=torch.bool).tril(3)
    one = torch.tensor([0])
    unknown = torch.zeros(1, 3, dtype=torch.bool), NOTHING, NOTHING, NOTHING, NOWHERE
    places = AuxiliaryTargets(one, one, one, torch.tensor([2]), *unknown)
    shown = AttentionRecord(query_BHTD, key_BGSD, key_BGSD, 1.0, mask)
    (found,) = answer_attention_loss(shown, 0, [[memory]], 1, places)
    stray = -0.5 * torch.tensor(1 - 1 / 6).log().item()  # one of six equal parts is on another memory token
    assert float(found) == pytest.approx(-torch.tensor(0.5).log().item() + stray, abs=1e-3)
    absent = AuxiliaryTargets(one, one, one, torch.tensor([1]), *unknown)
    assert len(answer_attention_loss(shown, 0, [[memory]], 1, absent)) == 0


def test_gathering_is_the_share_on_shared_words() -> None:
    references, ids = [[[5, 6, 7, 8]]], [[0, 3, 5, 2, 7, 8, 10]]
    places = find_targets(references, ids, [[False] * 4 + [True] * 3], frozenset([6]))
    assert places.in_question.position_F.tolist() == [3]
    assert places.in_question.target_FT.nonzero()[:, 1].tolist() == [2]
    assert places.before_answer.position_F.tolist() == [2]
    assert places.before_answer.target_FT.nonzero()[:, 1].tolist() == [0]
    even = torch.zeros(1, 2, 7, 4)
    shown = AttentionRecord(even, torch.zeros(1, 2, 2 + 7, 4), even, 1.0, None)
    (found,) = word_attention_loss([shown], places.in_question)
    assert float(found) == pytest.approx(torch.tensor(6.0).log().item(), abs=1e-3)
    assert len(word_attention_loss([], places.in_question)) == len(word_attention_loss([shown], NOTHING)) == 0


def test_words_after_an_answer_look_back_up_to_the_end_of_the_sentence() -> None:
    stop, who = 1, 3
    references = [[[2, 4], [9, 6, 20, 8, stop, 21, 8]]]
    ids = [[0, who, 20, 8, 6, 10]]
    places = find_targets(references, ids, [[False] * 4 + [True] * 2], ends=frozenset([stop]))
    assert places.behind_answer.row_F.tolist() == [1, 1]
    assert places.behind_answer.position_F.tolist() == [2, 3]
    assert places.behind_answer.target_FT.nonzero()[:, 1].tolist() == [1, 1]
    assert places.after_answer.words.row_F.tolist() == [0]
    assert places.after_answer.words.position_F.tolist() == [3]
    assert places.after_answer.reference_F.tolist() == [1]
    assert places.after_answer.words.target_FT.nonzero()[:, 1].tolist() == [2, 3]
    assert len(places.before_answer.row_F) == 0


def test_pointing_is_the_share_on_the_words_after_the_answer() -> None:
    index = torch.tensor([[[0, 2]]], dtype=torch.int32)
    memories = [[ExplicitMemory((0,), torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), index)] * 2]
    even = torch.zeros(1, 1, 1 + 4 + 3, 4)
    shown = AttentionRecord(even[:, :, :3], even, even, 1.0, None)
    one, second = torch.tensor([1]), torch.tensor([1])
    found = WordsAfter(SharedWords(torch.tensor([0]), one, torch.tensor([[False, True, True]])), second)
    # seven columns are seen: one in front, four of memory, two of the text; one of them holds a kept word
    assert float(word_pointing_loss(shown, 0, memories, 1, found)) == pytest.approx(
        torch.tensor(7.0).log().item(), abs=1e-3
    )
    not_kept = WordsAfter(SharedWords(torch.tensor([0]), one, torch.tensor([[False, True, False]])), second)
    for nothing in (not_kept, NOWHERE):
        assert len(word_pointing_loss(shown, 0, memories, 1, nothing)) == 0


def kept(weight_BLGT: torch.Tensor, num_kept: int = 1) -> float:
    value_RT = torch.tensor([[True, True, False, False], [False, False, False, False]])
    return float(selection_loss(weight_BLGT, value_RT, num_kept).mean())


def test_keeping_wants_every_answer_token_in_some_head() -> None:
    other = torch.ones(1, 4)
    first, second = torch.tensor([[9.0, 1, 1, 1]]), torch.tensor([[1.0, 9, 1, 1]])
    apart = torch.stack([torch.cat([first, second]), torch.cat([other, other])])[:, None]
    same = torch.stack([torch.cat([first, first]), torch.cat([other, other])])[:, None]
    neither = torch.stack([torch.tensor([[1.0, 1, 9, 1]] * 2), torch.cat([other, other])])[:, None]
    assert kept(apart) < 0.2 < kept(same) < kept(neither)
    assert kept(apart, num_kept=4) == 0.0


def test_keeping_pushes_a_token_that_no_head_keeps() -> None:
    weight_BLGT = torch.tensor([[[[9.0, 1, 1, 1], [9.0, 2, 1, 1]]], [[[1.0, 1, 1, 1]] * 2]], requires_grad=True)
    value_RT = torch.tensor([[True, True, False, False], [False, False, False, False]])
    selection_loss(weight_BLGT, value_RT, 1).mean().backward()
    assert weight_BLGT.grad is not None
    pushed = weight_BLGT.grad[0, 0, :, 1]
    assert bool((pushed < 0).all())
    assert float(weight_BLGT.grad[1].abs().sum()) == 0.0


def test_the_gradient_of_choosing_is_there_only_when_it_is_asked_for() -> None:
    lm = from_transformers(tiny_model(), byte_tokenizer(), "tiny")
    method = Memory3(Memory3Config((0, 1), 4))
    rng = Random(0)
    references = [[rng.randrange(3, 90) for _ in range(size)] for size in (3, 9, 6)]
    plain, traced = method.write_together(lm, references), method.write_together(lm, references, gradient=True)
    assert plain.weight_BLGT is not None
    assert traced.weight_BLGT is not None
    assert (plain.weight_BLGT.requires_grad, traced.weight_BLGT.requires_grad) == (False, True)
    torch.testing.assert_close(plain.weight_BLGT, traced.weight_BLGT.detach())
    torch.testing.assert_close(plain.index_BLGN, traced.index_BLGN)


def test_writing_by_length_equals_writing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = from_transformers(tiny_model(), byte_tokenizer(), "tiny")
    rng = Random(0)
    references = [[[rng.randrange(3, 90) for _ in range(size)] for size in row] for row in ((12, 30, 17), (9, 25))]
    answers = [references[0][1][20:23], references[1][1][3:6]]
    rows = [
        ([1, row[1][2], *answer, 10], [0, TEXT, *[ANSWER] * 4]) for row, answer in zip(references, answers, strict=True)
    ]
    packed = pack(rows, 8, 0)
    places = find_targets(references, packed.ids_BT.tolist(), packed.kind_BT.eq(ANSWER).tolist())
    assert len(places.before_answer.row_F) == 2
    batch, index_N = MemoryBatch(references, packed.ids_BT, packed.kind_BT, places), targets(packed.kind_BT, 1)
    found = []
    for num_parts in (1, 3):
        monkeypatch.setattr(memory_module, "PARTS", num_parts)
        found.append(read_memories(lm, Memory3Config((0, 1), 8), batch, index_N, writes=True))
    torch.testing.assert_close(found[0], found[1])


def test_every_auxiliary_loss_counts() -> None:
    """Three memory layers: the words look back at the lowest two, and are found one layer before the last."""
    lm = from_transformers(tiny_model(num_layers=4), byte_tokenizer(), "tiny")
    who, stop = 40, 41
    references = [[[5, 6, 20, 21, stop], [30, 31, 32, stop]]]
    packed = pack([([1, who, 20, 21, 5, 6, 10], [0, *[TEXT] * 3, *[ANSWER] * 3])], 8, 0)
    answers = packed.kind_BT.eq(ANSWER).tolist()
    places = find_targets(references, packed.ids_BT.tolist(), answers, ends=frozenset([stop]))
    assert len(places.behind_answer.row_F) == 2
    assert len(places.after_answer.words.row_F) == 1

    def loss(changed: AuxiliaryTargets) -> float:
        batch, index_N = MemoryBatch(references, packed.ids_BT, packed.kind_BT, changed), targets(packed.kind_BT, 1)
        return float(read_memories(lm, Memory3Config((0, 1, 2), None), batch, index_N, writes=True)[1].detach())

    nothing = SharedWords(NONE, NONE, torch.zeros(0, 8, dtype=torch.bool))
    without_after, without_behind = (
        replace(places, after_answer=WordsAfter(nothing, NONE)),
        replace(places, behind_answer=nothing),
    )
    assert loss(places) > loss(without_after) > loss(replace(without_after, behind_answer=nothing))
    assert loss(places) > loss(without_behind)
