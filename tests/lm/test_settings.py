"""A checkpoint says what it was made for, and a session without a preset does as it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import remanence as rm
from remanence import methods
from remanence.lm.tiny import byte_tokenizer, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_without_a_preset_the_model_s_own_settings_hold(folder: Path) -> None:
    (folder / "remanence.json").write_text(json.dumps({"memory3": {"kept_tokens": 16, "memory_layers": [1]}}))
    lm = rm.load(folder)
    own = methods.load("memory3", lm).config
    assert (own.kept_tokens, own.memory_layers, own.reference_tokens) == (16, (1,), 128)
    assert methods.load("memory3:paper", lm).config.kept_tokens == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "not an object"),
        ('{"memory3": {"kept_token": 1}}', "did you mean 'kept_tokens'"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(folder: Path, text: str, words: str) -> None:
    (folder / "remanence.json").write_text(text)
    with pytest.raises(rm.InputError, match=words) as caught:
        methods.load("memory3", rm.load(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ("[]", "not an object of objects"),
        ("{}", "names no base of its adapter"),
        ('{"base": 5}', "names no base of its adapter"),
        ('{"base": ""}', "names no base of its adapter"),
        ('{"base": "SELF"}', "which is an adapter itself"),
        ('{"base": "nano-mplus"}', "which is an adapter itself"),
        ('{"base": "tiny", "roles": 5}', "roles that are no list of names"),
        ('{"base": "tiny", "roles": ["sing"]}', "names a role 'sing'"),
    ],
)
def test_an_adapter_of_nothing_or_of_an_adapter_is_one_line(tmp_path: Path, adapter: str, words: str) -> None:
    (tmp_path / "remanence.json").write_text(f'{{"adapter": {adapter.replace("SELF", str(tmp_path))}}}')
    with pytest.raises(rm.InputError, match=words) as caught:
        rm.load(tmp_path)
    assert "\n" not in str(caught.value)
