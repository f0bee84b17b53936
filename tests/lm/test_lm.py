"""LM: forward's positions and caches, what the fingerprint depends on, text to tokens and back, loading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import DynamicCache

from remanence.errors import ContextTooLong, InputError, UnsupportedModel
from remanence.lm.capture import capture
from remanence.lm.lm import LM, Dims
from remanence.lm.load import from_transformers, load
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.types import KV, LayerPrefix
from tests.lm.families import build

TINY = load("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def prefix(offset: int) -> LayerPrefix:
    with torch.no_grad():
        seen = capture(TINY.model, torch.arange(30, 30 + offset)[None], frozenset([0, 1]))
    return LayerPrefix(tuple(KV(seen[i].key_BGSD, seen[i].value_BGSD) for i in (0, 1)), offset_tokens=offset)


# -- forward -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_positions_start_behind_memory() -> None:
    ids_BT = torch.arange(50, 57)[None]
    in_context = TINY.forward(torch.arange(30, 39)[None])  # the first nine of what follows
    assert in_context.shape == (1, 9, 259)
    whole = TINY.forward(torch.cat([torch.arange(30, 39)[None], ids_BT], dim=1))[:, 9:]
    torch.testing.assert_close(TINY.forward(ids_BT, prefix(9)), whole, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        TINY.forward(ids_BT, prefix(9), 9 + torch.arange(7)[None], torch.ones(1, 7, dtype=torch.long)),
        whole,
        rtol=0,
        atol=2e-5,
    )


@torch.no_grad()
def test_positions_go_on_behind_the_cache() -> None:
    ids_BT, cache = torch.arange(50, 57)[None], DynamicCache()
    whole = TINY.forward(ids_BT, prefix(9))
    pieces = [TINY.forward(ids_BT[:, a:b], prefix(9), cache=cache) for a, b in ((0, 4), (4, 5), (5, 7))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=2e-5)


@torch.no_grad()
def test_last_only_is_the_last() -> None:
    ids_BT = torch.arange(50, 57)[None]
    last = TINY.forward(ids_BT, prefix(9), last_only=True)
    torch.testing.assert_close(last, TINY.forward(ids_BT, prefix(9))[:, -1:])


@torch.no_grad()
def test_without_memory_it_is_the_model_itself() -> None:
    ids_BT = torch.arange(50, 57)[None]
    assert torch.equal(TINY.forward(ids_BT), tiny_model()(ids_BT, use_cache=False).logits)


# -- sizes and fingerprint -----------------------------------------------------------------------------------


def test_dims() -> None:
    assert TINY.dims == Dims(2, 64, 4, 2, 16, 259, 2048)
    neox = from_transformers(build("gpt_neox"), byte_tokenizer())
    assert (neox.dims.num_kv_heads, neox.dims.head_dim) == (4, 16)
    gemma = from_transformers(build("gemma3_text", head_dim=32), byte_tokenizer())
    assert gemma.dims.head_dim == 32


def changed(change: Callable[[torch.nn.Module], object], tokenizer: object = None) -> str:
    model = tiny_model()
    change(model)
    return LM(model, tokenizer or byte_tokenizer(), "x").fingerprint


def test_the_fingerprint_is_of_weights_config_tokenizer_and_dtype() -> None:
    same = changed(lambda model: None)
    assert same == TINY.fingerprint
    assert len(same) == 64
    assert changed(lambda model: model.set_attn_implementation("eager")) == same
    longer = byte_tokenizer()
    longer.add_tokens(["<new>"])
    others = [
        changed(lambda model: model.lm_head.weight.data[0, 0].add_(1e-3)),
        changed(lambda model: model.bfloat16()),
        changed(lambda model: model.double()),
        changed(lambda model: setattr(model.config, "rms_norm_eps", 1e-5)),
        changed(lambda model: None, longer),
        LM(tiny_model(seed=1), byte_tokenizer(), "x").fingerprint,
        LM(tiny_model(num_layers=3), byte_tokenizer(), "x").fingerprint,
    ]
    assert len({same, *others}) == 8


def test_the_fingerprint_does_not_depend_on_where_a_model_lies(folder: Path, tmp_path: Path) -> None:
    lm = load(folder)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path).fingerprint == lm.fingerprint


# -- text ----------------------------------------------------------------------------------------------------


@given(st.text(max_size=40))
def test_text_survives_tokens(text: str) -> None:
    ids = TINY.encode(text)
    assert TINY.decode(ids) == text
    assert TINY.count_tokens(text) == len(ids) == len(text.encode())
    assert not {0, 1, 2} & set(ids)


def test_special_tokens_are_neither_added_nor_read_out_of_text() -> None:
    ids = TINY.encode("a</s>b<s>")
    assert not {0, 1, 2} & set(ids)
    assert TINY.decode(ids) == "a</s>b<s>"
    assert TINY.decode([1, *ids, 2]) == "a</s>b<s>"


def test_a_conversation_begins_with_bos_once() -> None:
    messages = [{"role": "user", "content": "Who?"}]
    expected = [1, *TINY.encode("Question: Who?\nAnswer:")]
    assert TINY.render(messages) == expected
    plain = byte_tokenizer()
    plain.chat_template = None
    assert LM(tiny_model(), plain, "x").render([*messages, *messages]) == [1, *TINY.encode("Who?\nWho?")]
    without = byte_tokenizer()
    without.bos_token, without.chat_template = None, None
    lm = LM(tiny_model(), without, "x")
    assert lm.bos == []
    assert lm.render(messages) == TINY.encode("Who?")


def test_what_ends_an_answer() -> None:
    assert TINY.eos == {2}
    model = tiny_model()
    model.generation_config.eos_token_id = [7, 9]
    model.generation_config.stop_strings = "\n"
    lm = LM(model, byte_tokenizer(), "x")
    assert lm.eos == {2, 7, 9}
    assert lm.stop == ("\n",)
    assert TINY.stop == ()


def test_too_many_tokens_are_refused_with_both_numbers() -> None:
    TINY.check_length(2048)
    with pytest.raises(ContextTooLong, match=r"2049 tokens.*2048 positions.*shorten"):
        TINY.check_length(2049)


# -- loading -------------------------------------------------------------------------------------------------


def test_a_folder_loads_and_reads_memory(folder: Path) -> None:
    lm = load(folder)
    assert lm.dtype == torch.float32
    assert lm.name == str(folder)
    assert lm.embedder is None
    assert not lm.model.training
    ids_BT = torch.arange(50, 57)[None]
    with torch.no_grad():
        assert torch.equal(lm.forward(ids_BT, prefix(9)), TINY.forward(ids_BT, prefix(9)))


def test_a_dtype_can_be_chosen(folder: Path) -> None:
    assert load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_search_head_beside_the_weights_is_found(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    save_file({"weight": torch.randn(8, 64)}, tmp_path / "embedder.safetensors")
    (tmp_path / "embedder.json").write_text(json.dumps({"layer": 1}))
    embedder = load(tmp_path).embedder
    assert embedder is not None
    assert embedder.dim == 8
    vectors = embedder.embed(["one", "a longer text", "one", ""])
    assert vectors.shape == (4, 8)
    assert (vectors**2).sum(-1) == pytest.approx(1.0, abs=1e-5)
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)
    assert vectors[0] == pytest.approx(embedder.embed(["one"])[0], abs=1e-5)  # padding takes no part
    assert embedder.embed([]).shape == (0, 8)


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model"])
def test_an_unknown_model_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}' cannot be loaded.*nano"):
        load(name)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path)


def test_a_model_that_fails_the_proof_is_refused() -> None:
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModel, match="flash_attention_2"):
        from_transformers(model, byte_tokenizer())


def test_attaching_leaves_training_mode(folder: Path) -> None:
    lm = from_transformers(tiny_model().train(), byte_tokenizer(), "mine")
    assert lm.name == "mine"
    assert not lm.model.training
    assert lm.proof.error <= lm.proof.allowed
