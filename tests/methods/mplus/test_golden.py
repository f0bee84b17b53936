"""Parity with the authors' code: everything that golden files hold, in the order of what rests on what.

`REMANENCE_MPLUS_GOLDEN=DIR` runs over the files of another folder.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from remanence.lm import attention
from remanence.lm.cache import roomy_cache
from remanence.lm.lm import LM
from remanence.lm.published import convert
from remanence.lm.tiny import byte_tokenizer
from remanence.methods.mplus.method import MPlus, MPlusConfig
from remanence.methods.mplus.pool import Pool
from remanence.methods.mplus.prefix import PoolPrefix
from remanence.methods.mplus.retriever import balanced_loss

FOLDER = Path(os.environ.get("REMANENCE_MPLUS_GOLDEN", Path(__file__).parents[2] / "golden" / "mplus"))
FILES = sorted(FOLDER.glob("golden_*.safetensors"))
TOLERANCE = 2e-4
READ_AFTER = (1, 3, 7)


@dataclass
class Golden:
    """A file's tensors, and our model of its weights."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, lead: str) -> dict[str, Tensor]:
        return {name.removeprefix(lead): t for name, t in self.tensors.items() if name.startswith(lead)}

    def layers(self, lead: str) -> list[Tensor]:
        return [self.tensors[f"{lead}.{i}"] for i in range(self.config["num_hidden_layers"])]

    @cached_property
    def lm(self) -> LM:
        weights = self.part("weights/")
        rounded = torch.equal(self.inv_freq, self.inv_freq.bfloat16().float())
        made = convert(self.config, weights, inv_freq_dtype=torch.bfloat16 if rounded else None)
        for module in made.model.modules():
            if hasattr(module, "inv_freq"):
                assert torch.allclose(module.inv_freq, self.inv_freq, rtol=1e-6)
        lm = LM(made.model, byte_tokenizer(), "golden")
        lm.latent, lm.settings = made.latent, {"mplus": made.settings}
        return lm

    @property
    def inv_freq(self) -> Tensor:
        return self.tensors["weights_meta/inv_freq"]

    @cached_property
    def method(self) -> MPlus:
        settings = self.lm.settings["mplus"]
        return MPlus(MPlusConfig(**settings, eviction="reference", ages="reference", precision="float32"))

    def start(self) -> Pool:
        """The state before the first injection: STM ages are not in a checkpoint, so they are set here."""
        pool = self.method.fresh(self.lm)
        return replace(pool, born_LN=-torch.stack(self.layers("init/memory_ages")).long())

    @cached_property
    def states(self) -> list[Pool]:
        """The pool before, and after each injection with the recorded rows dropped."""
        pools = [self.start()]
        for j in range(len(self.injections())):
            fresh_LKC = self.tensors[f"inj/{j}/delta_memory"][0]
            dropped_LK = torch.stack(self.layers(f"inj/{j}/dropped"))
            with torch.no_grad():
                pools.append(self.method.exchange(self.lm, pools[-1], fresh_LKC, dropped_LK))
        return pools

    def injections(self) -> list[Tensor]:
        return [self.tensors[f"inj/{j}/input_ids"] for j in range(8)]


@cache
def _load(file: Path) -> Golden:
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["config"])
        return Golden(config, {name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return _load(request.param)


with_training_step = pytest.mark.parametrize(
    "golden", [file for file in FILES if "train/ctx" in _load(file).tensors], indirect=True, ids=lambda file: file.stem
)
"""Of the files that hold one (the authors' step was recorded once)."""


def near(ours: Tensor, theirs: Tensor) -> bool:
    """Of one shape, and nowhere further apart than the tolerance."""
    if ours.shape != theirs.shape:
        return False
    return bool(((ours.detach().float() - theirs.float()).abs() <= TOLERANCE).all())


def test_there_are_golden_files() -> None:
    assert FILES, f"no golden_*.safetensors in {FOLDER}"


def test_1_every_weight_is_mapped(golden: Golden) -> None:
    weights, latent = golden.part("weights/"), golden.lm.latent
    assert latent is not None
    ours = sum(t.numel() for t in golden.lm.model.state_dict().values()) + sum(t.numel() for t in latent.values())
    assert ours == sum(t.numel() for t in weights.values())


def test_2_writing_makes_their_rows(golden: Golden) -> None:
    for pool, (j, ids) in zip(golden.states, enumerate(golden.injections()), strict=False):
        K = golden.method.config.write_rows
        with torch.no_grad():
            made = golden.method.encode(golden.lm, pool.row_LNC[None, :, -K:], [ids[0].tolist()])
        assert near(made, golden.tensors[f"inj/{j}/delta_memory"])


def test_3_the_state_after_each_injection(golden: Golden) -> None:
    for j, pool in enumerate(golden.states[1:]):
        lead, long = f"inj/{j}/after/", pool.long
        assert near(pool.row_LNC, golden.tensors[f"{lead}memory"])
        staged = slice(long.num_merged, None)
        assert int(golden.tensors[f"{lead}update_step"]) == long.num_staged
        for i in range(golden.lm.dims.num_layers):
            assert torch.equal(pool.age_LN[i], golden.tensors[f"{lead}memory_ages.{i}"].long())
            kept = long.alive(i)[: long.num_merged].nonzero().squeeze(1)
            age_M, key_ME = pool.clock - long.blocks.born(i), torch.cat(list(long.blocks.keys(i)))
            assert near(long.blocks.rows(i, kept), golden.tensors[f"{lead}ltm.{i}"])
            assert near(key_ME[kept], golden.tensors[f"{lead}ltm_keys.{i}"])
            assert torch.equal(age_M[kept], golden.tensors[f"{lead}ltm_ages.{i}"].long())
            assert near(long.frequency(i)[kept], golden.tensors[f"{lead}ltm_rf.{i}"])
            if long.num_staged:
                index_N = torch.arange(long.blocks.num_rows)[staged]
                assert near(long.blocks.rows(i, index_N), golden.tensors[f"{lead}cached.{i}"])
                assert near(key_ME[staged], golden.tensors[f"{lead}cached_keys.{i}"])
                assert torch.equal(age_M[staged], golden.tensors[f"{lead}cached_ages.{i}"].long())


def _reads(golden: Golden) -> list[tuple[str, Pool]]:
    states = golden.states
    return [("init/read/", states[0]), *((f"inj/{j}/read/", states[j + 1]) for j in READ_AFTER)]


def _prefill(golden: Golden, lead: str, pool: Pool) -> tuple[PoolPrefix, Tensor, Any]:
    prefix = golden.method.prefix(golden.lm, [pool])
    cache = roomy_cache(golden.lm.model)
    with torch.no_grad():
        logits = golden.lm.forward(golden.tensors[f"{lead}input_ids"], prefix, cache=cache, role="read")
    return prefix, logits, cache


def test_4_the_rows_that_are_retrieved_in_order(golden: Golden) -> None:
    for lead, pool in _reads(golden):
        prefix, _, _ = _prefill(golden, lead, pool)
        for i in range(golden.lm.dims.num_layers):
            assert near(pool.long.blocks.rows(i, prefix.chosen[i][0]), golden.tensors[f"{lead}retrieved.{i}"])


def test_5_prefill_logits_keys_and_values(golden: Golden) -> None:
    for lead, pool in _reads(golden):
        prefix, logits, cache = _prefill(golden, lead, pool)
        assert near(logits, golden.tensors[f"{lead}logits"])
        for i in range(golden.lm.dims.num_layers):
            kv, text = prefix.kvs[i], cache.layers[i]
            assert near(torch.cat([kv.key_BGMD, text.keys], dim=2), golden.tensors[f"{lead}kv_k.{i}"])
            assert near(torch.cat([kv.value_BGMD, text.values], dim=2), golden.tensors[f"{lead}kv_v.{i}"])


def test_6_decoding(golden: Golden) -> None:
    for lead, pool in _reads(golden):
        prefix, _, cache = _prefill(golden, lead, pool)
        with torch.no_grad():
            step = golden.lm.forward(golden.tensors[f"{lead}step_ids"], prefix, cache=cache, role="read")
        assert near(step, golden.tensors[f"{lead}step_logits"])
        prefix, logits, cache = _prefill(golden, lead, pool)
        ids, greedy = golden.tensors[f"{lead}input_ids"][0].tolist(), golden.tensors[f"{lead}greedy"][0].tolist()
        while len(ids) < len(greedy):
            ids.append(int(logits[0, -1].argmax()))
            with torch.no_grad():
                logits = golden.lm.forward(torch.tensor([ids[-1:]]), prefix, cache=cache, role="read")
        assert ids == greedy


def _gradients(golden: Golden) -> dict[str, Tensor]:
    """Every parameter's gradient by the authors' names."""
    modules = golden.method.modules(golden.lm)
    found = {"bos_embedding": modules.bos_LC.grad, "new_memory_positional_emb": modules.mark_C.grad}
    for name, parameter in modules.named_parameters():
        kind, _, rest = name.partition(".")
        if rest:
            layer, _, last = rest.partition(".")
            found[f"model.layers.{layer}.self_attn.{kind}_proj.{last}"] = parameter.grad
    for name, parameter in golden.lm.model.named_parameters():
        theirs = name.replace(".base.weight", ".base_layer.weight")
        for role, adapter in (("write", "default"), ("read", "decoder_adapter")):
            theirs = theirs.replace(f".a.{role}", f".lora_A.{adapter}.weight")
            theirs = theirs.replace(f".b.{role}", f".lora_B.{adapter}.weight")
        found[theirs] = parameter.grad
    return {name: grad for name, grad in found.items() if grad is not None}


def _clear(golden: Golden) -> None:
    golden.lm.model.zero_grad(set_to_none=True)
    golden.method.modules(golden.lm).zero_grad(set_to_none=True)


def _check_gradients(golden: Golden, lead: str) -> None:
    ours, theirs = _gradients(golden), golden.part(lead)
    nothing = {name for name, grad in theirs.items() if not grad.abs().max()}
    assert set(theirs) - nothing <= set(ours) <= set(theirs) | {n for n, g in ours.items() if not g.abs().max()}
    for name in sorted(set(theirs) & set(ours)):
        assert near(ours[name].view_as(theirs[name]), theirs[name])


@with_training_step
def test_7_two_chunks_with_gradient(golden: Golden) -> None:
    pool = golden.states[-1]
    _clear(golden)
    K, sentence = golden.method.config.write_rows, golden.tensors["train/sen"]
    delta = golden.method.encode(golden.lm, pool.row_LNC[None, :, -K:], [golden.tensors["train/ctx"][0].tolist()])
    assert near(delta, golden.tensors["train/two_chunk_delta"])
    logits = golden.lm.forward(sentence, golden.method.alone(golden.lm, delta), role="write")
    loss = functional.cross_entropy(logits[0, :-1], sentence[0, 1:])
    assert near(logits, golden.tensors["train/two_chunk_logits"])
    assert near(loss[None], golden.tensors["train/two_chunk_loss"])
    loss.backward()
    _check_gradients(golden, "train/grad/")


@with_training_step
def test_8_retriever_scores_loss_and_gradients(golden: Golden) -> None:
    lm, method, K = golden.lm, golden.method, golden.method.config.write_rows
    pool, sentence = golden.states[-1], golden.tensors["train/sen"]
    old_LNC = torch.stack([pool.row_LNC[i, kept] for i, kept in enumerate(golden.layers("train/ret/kept_old"))])
    row_LNC = torch.cat([old_LNC, golden.tensors["train/two_chunk_delta"][0]], dim=1)
    _clear(golden)
    prefix = method.prefix(lm, [replace(pool, row_LNC=row_LNC)])
    watch = attention.AttentionCapture(frozenset(range(lm.dims.num_layers)))
    positions_BT = prefix.offset_tokens + torch.arange(sentence.shape[1])[None]
    logits = lm.model(sentence, position_ids=positions_BT, memory=prefix, role="read", watch=watch).logits
    assert near(logits, golden.tensors["train/ret/logits"])
    assert near(functional.cross_entropy(logits[0, :-1], sentence[0, 1:])[None], golden.tensors["train/ret/lm_loss"])
    hidden = {layer: hidden_BTC.detach() for layer, hidden_BTC in watch.hidden.items()}
    reader_LN, writer_LN = (
        method.reader_scores(lm, row_LNC[None], hidden)[0],
        method.writer_scores(lm, row_LNC[None])[0],
    )
    assert near(reader_LN, golden.tensors["train/ret/W"])
    assert near(writer_LN, golden.tensors["train/ret/E"])
    is_own_LN = torch.zeros_like(reader_LN, dtype=torch.bool)
    is_own_LN[:, -K:] = True
    loss = balanced_loss(reader_LN, is_own_LN) + balanced_loss(writer_LN, is_own_LN)
    assert near(loss[None], golden.tensors["train/ret/selector_loss"])
    loss.backward()
    _check_gradients(golden, "train/ret/grad/")
