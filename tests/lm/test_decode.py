"""The generation loop against transformers' own: with memory it writes what the text in context makes it write."""

from __future__ import annotations

import pytest
import torch

from remanence.lm.decode import decode
from remanence.lm.lm import LM
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.methods.memory3.method import Group, Memory3, dense
from tests.lm.families import backends, build


def make_lm(name: str) -> LM:
    model = tiny_model(num_layers=3) if name == "tiny" else build(name, backends(name)[-1], vocab_size=259)
    model.generation_config.eos_token_id = None
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    return LM(model, tokenizer, name)


def in_context(lm: LM, ids: list[int], max_tokens: int) -> list[int]:
    plain_BT = torch.tensor([ids])
    return lm.model.generate(
        plain_BT, attention_mask=torch.ones_like(plain_BT), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
    )[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", ["tiny", "qwen3", "gemma3_text", "gpt_oss", "smollm3"])
def test_decoding_with_memory_is_generating_with_the_text_in_context(name: str) -> None:
    """Rows of other lengths, with other references: one batch of ours against three single runs of theirs."""
    lm = make_lm(name)
    method = Memory3(dense(lm))
    references = [lm.encode(text) for text in ("Ada's locker code is 4417.", "The boat leaves at nine.", "No.")]
    prompts = [[1, *lm.encode(text)] for text in ("Question: what is it?", "Who?", "When does the boat leave?")]
    with torch.no_grad():
        groups = [[Group(0, (memory,))] for memory in method.write(lm, references)]
        prefix = method.prefix(lm, groups, [len(prompt) for prompt in prompts])
        decoding = method.prefix(lm, groups, [1] * 3)
    *_, rows = decode(lm, prompts, prefix, decoding_prefix=decoding, max_tokens=12)
    for row, reference, prompt in zip(rows, references, prompts, strict=True):
        assert row.ids == in_context(lm, [*method.prefix_ids(lm), *reference, *prompt], 12)


@pytest.mark.parametrize("name", ["tiny", "gpt_neox", "opt"])
def test_decoding_without_memory_is_generating(name: str) -> None:
    lm = make_lm(name)
    prompts = [[1, *lm.encode(text)] for text in ("Question: what is it?", "Who?")]
    *_, rows = decode(lm, prompts, max_tokens=12)
    assert [row.ids for row in rows] == [in_context(lm, prompt, 12) for prompt in prompts]
