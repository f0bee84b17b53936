"""What every method promises, checked on whatever is in the folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from remanence import methods
from remanence.errors import InputError
from remanence.lm.lm import LM
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.methods import Method, Prompt
from tests.methods.helpers import Recalls, run

LIBRARY = ("Ada's locker code is 4417.", "Bruno's dog is called Rex.", "The boat leaves at nine.")
EXACT = 1e-4
"""float32 on a random model whose largest logit is about 3."""

ALL = [
    (name, preset)
    for name, cls in sorted(methods.known().items())
    for preset in cls.presets
    if cls.open_state is Method.open_state  # tests/test_snapshots.py: a state needs a bank
]


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM(tiny_model(num_layers=4), byte_tokenizer(), "tiny")


@pytest.fixture(params=ALL, ids=[f"{name}:{preset}" for name, preset in ALL])
def method(request: pytest.FixtureRequest, lm: LM) -> Method:
    return methods.load(request.param[0], lm, request.param[1])


def find(query: str) -> Sequence[str]:
    """Sentences that share a long word with the query."""
    words = {word.strip("?.'s") for word in query.split() if len(word) > 3}
    return [text for text in LIBRARY if words & {word.strip("?.'s") for word in text.split()}]


def ask(lm: LM, question: str) -> Prompt:
    return Prompt(tuple(lm.render([{"role": "user", "content": question}])), question)


PROMPTS = ("What is Ada's locker code?", "Where?", "Who calls the dog by its name, and when does the boat leave? " * 2)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=EXACT)


def test_reading_answers_every_prompt(lm: LM, method: Method) -> None:
    reading = method.read(lm, Recalls(lm, method, find, LIBRARY), [ask(lm, text) for text in PROMPTS])
    assert len(reading.prompts) == len(reading.groups) == len(PROMPTS)
    for text, ids, groups in zip(PROMPTS, reading.prompts, reading.groups, strict=True):
        asked = ask(lm, text).ids
        assert ids[len(ids) - len(asked) :] == asked  # what was asked stands at the end
        starts = [start for start, _ in groups]
        assert starts[0] == 0
        assert starts == sorted(set(starts))
        assert starts[-1] < len(ids)
    assert all(torch.isfinite(row).all() for row in run(lm, reading))


def test_what_is_recalled_matters(lm: LM, method: Method) -> None:
    prompts = [ask(lm, PROMPTS[0])]
    reading = method.read(lm, Recalls(lm, method, find, LIBRARY[:1]), prompts)
    other = method.read(lm, Recalls(lm, method, lambda query: LIBRARY[1:2], LIBRARY[1:2]), prompts)
    assert LIBRARY[0] in [hit.chunk.text for _, hits in reading.groups[0] for hit in hits]
    assert float((run(lm, reading)[0][-1] - run(lm, other)[0][-1]).abs().max()) > 1e-3


def test_reading_twice_is_bit_identical(lm: LM, method: Method) -> None:
    prompts = [ask(lm, text) for text in PROMPTS]
    one, other = (run(lm, method.read(lm, Recalls(lm, method, find, LIBRARY), prompts)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_rows_of_a_batch_are_independent(lm: LM, method: Method) -> None:
    prompts = [ask(lm, text) for text in PROMPTS]
    together = run(lm, method.read(lm, Recalls(lm, method, find, LIBRARY), prompts))
    for prompt, row in zip(prompts, together, strict=True):
        (alone,) = run(lm, method.read(lm, Recalls(lm, method, find, LIBRARY), [prompt]))
        assert row.shape == alone.shape
        assert float((row - alone).abs().max()) <= EXACT


def test_nothing_recalled_is_the_model_alone_or_behind_a_fixed_prefix(lm: LM, method: Method) -> None:
    prompt = ask(lm, PROMPTS[0])
    reading = method.read(lm, Recalls(lm, method, lambda query: ()), [prompt])
    assert not any(reading.memory_tokens)
    assert [hit for _, hits in reading.groups[0] for hit in hits] == []
    text, offset = list(prompt.ids), 0
    if reading.prefix is not None:
        fixed = method.prefix_ids(lm)  # type: ignore[attr-defined]
        text, offset = [*fixed, *text], reading.prefix.offset_tokens - len(fixed)
    positions = [t + (offset if t >= len(text) - len(prompt.ids) else 0) for t in range(len(text))]
    with torch.no_grad():
        ids_BT = torch.tensor([text])
        plain = lm.forward(ids_BT, positions_BT=torch.tensor([positions]), mask_BS=torch.ones_like(ids_BT))[0]
    close(run(lm, reading)[0], plain[-len(prompt.ids) :])


def test_reading_again_keeps_the_prompts_and_adds_a_group_per_row(lm: LM, method: Method) -> None:
    recall = Recalls(lm, method, find, LIBRARY)
    reading = method.read(lm, recall, [ask(lm, text) for text in PROMPTS])
    rows = [[*ids, *lm.encode(" the boat leaves" * 5)] for ids in reading.prompts]
    again = method.refresh(lm, recall, reading, rows)
    assert again.prompts == reading.prompts
    if again is not reading:
        for old, new, row in zip(reading.groups, again.groups, rows, strict=True):
            assert new[:-1] == old
            assert new[-1][0] == len(row) - 1
        assert again.decoding is not None
        assert reading.prefix is not None
        assert again.decoding.offset_tokens == reading.prefix.offset_tokens


def test_writing_takes_any_allowed_length_and_needs_no_references(lm: LM, method: Method) -> None:
    assert method.write(lm, []) == []
    limit = method.reference_tokens()
    written = method.write(lm, [[50], [60] * limit])
    assert len(written) == (2 if method.writes_tensors else 0)
    if method.writes_tensors:
        with pytest.raises(InputError, match=str(limit + 1)):
            method.write(lm, [[60] * (limit + 1)])
        assert all(memory.num_bytes > 0 for memory in written)


def test_writing_twice_is_bit_identical(lm: LM, method: Method) -> None:
    references = [lm.encode(text) for text in LIBRARY]
    for one, other in zip(method.write(lm, references), method.write(lm, references), strict=True):
        assert torch.equal(one.key_LGND, other.key_LGND)
        assert torch.equal(one.value_LGND, other.value_LGND)
        assert torch.equal(one.index_LGN, other.index_LGN)


def test_shares_are_parts_of_what_was_recalled(lm: LM, method: Method) -> None:
    recall = Recalls(lm, method, find, LIBRARY)
    reading = method.read(lm, recall, [ask(lm, text) for text in PROMPTS])
    rows = [[*ids, *lm.encode(" 4417")] for ids in reading.prompts]
    shares = method.attention_shares(lm, recall, reading, rows)
    assert len(shares) == len(rows)
    for row, groups in zip(shares, reading.groups, strict=True):
        assert set(row) <= {hit.chunk.id for _, hits in groups for hit in hits}
        assert all(0 < share < 1 for share in row.values())
        assert sum(row.values()) < 1


def test_the_fingerprint_is_of_model_method_and_config(lm: LM, method: Method) -> None:
    same = methods.load(method.name, lm, next(p for n, p in ALL if n == method.name))
    assert type(method)(method.config).fingerprint(lm) == method.fingerprint(lm)
    assert method.describe()["method"] == method.name
    assert dataclasses.is_dataclass(method.config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.config.prefix_text = "Other:"
    other = type(method)(dataclasses.replace(method.config, prefix_text="Other:"))
    assert other.fingerprint(lm) != method.fingerprint(lm)
    other_lm = LM(tiny_model(seed=1, num_layers=4), byte_tokenizer(), "other")
    assert method.fingerprint(other_lm) != method.fingerprint(lm)
    assert same.name == method.name


def test_fingerprints_tell_methods_and_presets_apart(lm: LM) -> None:
    assert len({methods.load(name, lm, preset).fingerprint(lm) for name, preset in ALL}) == len(ALL)


def test_unknown_names_are_answered_with_the_nearest(lm: LM) -> None:
    with pytest.raises(InputError, match=r"no memory method 'memry3'.*did you mean 'memory3'"):
        methods.load("memry3", lm)
    with pytest.raises(InputError, match=r"no preset 'densse'.*did you mean 'dense'"):
        methods.load("memory3", lm, "densse")
    with pytest.raises(InputError, match=r"there are: .*memory3"):
        methods.load("", lm)
    assert methods.load("memory3:dense", lm).config.kept_tokens is None
    assert {"memory3", "retrieved_text", "full_context"} <= set(methods.known())
