"""A fingerprint depends on what changes a key, a value or a token, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import remanence as rm
from remanence.lm.fingerprint import fingerprint
from remanence.lm.folders import BUNDLED
from remanence.lm.load import load
from remanence.lm.tiny import byte_tokenizer, tiny_model
from tests.lm.families import FAMILIES, backends, build

NANO = "731d0632fc89d2a4810b281403f469d7416f92b9ad3c3e126de31b5e60bc3271"
MPLUS = "da21fd166167c8cdfda7bc8e3f60e5f3dc710e0f8fbee64f37762a5c69a9a480"
TINY = "4ec7ba130276b80ea614e7c97e8682d035800d14d3075d474c8bcf35d32e1fd8"
"""What banks were written under; the same with every library version that the metadata allows."""


@pytest.mark.parametrize(("name", "stored"), [("nano", NANO), ("nano-chat", NANO), ("nano-mplus", MPLUS)])
def test_banks_that_exist_stay_valid(name: str, stored: str) -> None:
    assert load(name).fingerprint == stored


def of(change: Callable[[Any, Any], object]) -> str:
    model, tokenizer = tiny_model(), byte_tokenizer()
    change(model, tokenizer)
    return fingerprint(model, tokenizer)


def pad_with(model: Any, tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id


NOTHING: dict[str, Callable[[Any, Any], object]] = {
    "nothing": lambda model, tokenizer: None,
    "padding and truncation": lambda model, t: t(["a", "bcd"], padding=True, truncation=True, max_length=2),
    "padding to a multiple": lambda model, t: t(["a", "bcd"], padding=True, pad_to_multiple_of=8),
    "padding side": lambda model, t: setattr(t, "padding_side", "left") or t(["a", "bcd"], padding=True),
    "padding token": pad_with,
    "longest text": lambda model, t: setattr(t, "model_max_length", 7),
    "chat template": lambda model, t: setattr(t, "chat_template", "{{ messages }}"),
    "no cache": lambda model, t: setattr(model.config, "use_cache", False),
    "attention backend": lambda model, t: model.set_attn_implementation("eager"),
    "name": lambda model, t: setattr(model.config, "_name_or_path", "somewhere/else"),
    "library": lambda model, t: setattr(model.config, "transformers_version", "4.0.0"),
    "dtype of the file": lambda model, t: setattr(model.config, "dtype", "bfloat16"),
    "outputs": lambda model, t: (
        model.set_attn_implementation("eager"),
        model.config.update({"output_attentions": True, "output_hidden_states": True, "return_dict": False}),
    ),
    "generation": lambda model, t: model.generation_config.update(temperature=0.7, do_sample=True, max_length=99),
    "training mode": lambda model, t: model.train(),
    "order": lambda model, t: setattr(model.config, "vocab_size", model.config.__dict__.pop("vocab_size")),
}

SOMETHING: dict[str, Callable[[Any, Any], object]] = {
    "weights": lambda model, t: model.lm_head.weight.data[0, 0].add_(1e-3),
    "dtype": lambda model, t: model.bfloat16(),
    "epsilon": lambda model, t: setattr(model.config, "rms_norm_eps", 1e-5),
    "rotation": lambda model, t: model.config.rope_parameters.update(rope_theta=500.0),
    "added token": lambda model, t: t.add_tokens(["<new>"]),
    "normalizer": lambda model, t: setattr(t.backend_tokenizer, "normalizer", normalizers.Lowercase()),
    "normalizer, after a call": lambda model, t: (
        setattr(t.backend_tokenizer, "normalizer", normalizers.Strip()),
        t(["a", "bcd"], padding=True),
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_says_nothing_about_a_model_changes_nothing(name: str) -> None:
    assert of(NOTHING[name]) == TINY


def test_what_changes_a_key_a_value_or_a_token_changes_it() -> None:
    assert len({TINY, *(of(change) for change in SOMETHING.values())}) == 1 + len(SOMETHING)


def test_taking_it_leaves_the_tokenizer_as_it_was() -> None:
    tokenizer = byte_tokenizer()
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    before = tokenizer.backend_tokenizer.to_str()
    fingerprint(tiny_model(), tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before


class NewerConfig(LlamaConfig):
    """As a newer transformers may bring it: one more field, whose default changes nothing."""

    def __init__(self, scale_of_everything: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale_of_everything = scale_of_everything


def test_a_new_field_counts_from_where_it_is_not_the_default() -> None:
    def with_config(**more: Any) -> str:
        model = LlamaForCausalLM(NewerConfig(**{**tiny_model().config.to_dict(), **more}))
        model.load_state_dict(tiny_model().state_dict())
        return fingerprint(model, byte_tokenizer())

    assert with_config() == TINY
    assert with_config(scale_of_everything=2.0) != TINY


@pytest.mark.parametrize("name", FAMILIES)
def test_a_padding_token_set_later_changes_nothing_in_any_family(name: str) -> None:
    model = build(name, backends(name)[-1])
    before = fingerprint(model, byte_tokenizer())
    model.config.pad_token_id = 5
    assert fingerprint(model, byte_tokenizer()) == before
    model.config.get_text_config().vocab_size += 1
    assert fingerprint(model, byte_tokenizer()) != before


def test_a_bank_opens_after_its_tokenizer_was_used_for_something_else(tmp_path: Path) -> None:
    def session() -> rm.Session:
        model = AutoModelForCausalLM.from_pretrained(BUNDLED["nano"], dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED["nano"])
        if (tmp_path / "meta.json").exists():
            tokenizer(["one", "two words"], padding=True, truncation=True, max_length=3)
            pad_with(model, tokenizer)
        return rm.Session(rm.from_transformers(model, tokenizer, "nano"), bank=tmp_path)

    with session() as first:
        first.write("Ada's locker code is 4417.")
        fingerprints = first.bank.fingerprints()
    with session() as second:
        reply = second.generate("What is Ada's locker code?", max_tokens=4)
        assert "4417" in reply.text
        assert second.bank.fingerprints() == fingerprints
