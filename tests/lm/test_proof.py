"""`prove` covers what is used later: faults in a cache, a capture, padding or generate() are refused, as measured."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from torch import Tensor
from transformers import Cache, DynamicCache, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama

import remanence as rm
from remanence.errors import ContextTooLong, UnsupportedModel
from remanence.lm import attention, proof, versions
from remanence.lm.capture import capture
from remanence.lm.lm import LM
from remanence.lm.rope_limit import rope_limit
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.types import KV, LayerPrefix
from tests.lm.families import FAMILIES, NUM_LAYERS, backends, build, config

EVERY = [(name, backend) for name in FAMILIES for backend in backends(name)]


def prove(model: PreTrainedModel) -> proof.Proof:
    return proof.prove(attention.prepare(model))


# -- no false alarm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backend"), EVERY)
def test_every_family_passes_on_every_path(name: str, backend: str) -> None:
    proof = prove(build(name, backend))
    assert len(proof.errors) == 4
    assert proof.error == max(proof.errors.values()) <= 0.01 * proof.allowed
    assert proof.effect >= 1e4 * proof.error
    assert proof.beyond == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes_the_longer_proof(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "TESTED", {"torch": "2.1", "transformers": "4.50"})
    model = build(name, backends(name)[-1])
    with pytest.warns(versions.UntestedVersion) as caught:
        proof = prove(model)
    assert len(caught) == 1
    assert len(proof.errors) == 4 + 3 * len(backends(name))
    assert proof.error <= 0.01 * proof.allowed


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes_in_bfloat16(name: str) -> None:
    # all experts: rounding would choose others, with memory or without
    has_experts = hasattr(config(name), "num_experts_per_tok")
    model = build(name, backends(name)[-1], torch.bfloat16, **({"num_experts_per_tok": 4} if has_experts else {}))
    proof = prove(model)
    assert proof.effect >= 10 * proof.error


def test_the_proof_leaves_the_model_as_it_was() -> None:
    model = attention.prepare(tiny_model())
    settings, text_BT = model.generation_config, torch.arange(30, 42)[None]
    before = model(text_BT, use_cache=False).logits
    prove(model)
    assert model.generation_config is settings
    assert torch.equal(model(text_BT, use_cache=False).logits, before)


# -- faults --------------------------------------------------------------------------------------------------


class FaultyCacheAttention(modeling_llama.LlamaAttention):
    """Attends to its cache after `fault`; the cache itself goes on as it should."""

    def fault(self, kv_BGSD: Tensor, is_key: bool) -> Tensor:
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
        if cache is None or not cache.get_seq_length(self.layer_idx):
            return super().forward(hidden_states, *args, **kwargs)
        faulty = copy.deepcopy(cache)
        layer = faulty.layers[self.layer_idx]
        layer.keys, layer.values = self.fault(layer.keys, True), self.fault(layer.values, False)
        super().forward(hidden_states, *args, **kwargs)
        kwargs = {name: faulty if value is cache else value for name, value in kwargs.items()}
        return super().forward(hidden_states, *args, **{**kwargs, "attention_mask": None})


class DropsCacheAttention(FaultyCacheAttention):
    """The token that was cached last is lost."""

    def fault(self, kv_BGSD: Tensor, is_key: bool) -> Tensor:
        return kv_BGSD[:, :, :-1]


class DoublesCacheAttention(FaultyCacheAttention):
    """The token that was cached last is there twice."""

    def fault(self, kv_BGSD: Tensor, is_key: bool) -> Tensor:
        return torch.cat([kv_BGSD, kv_BGSD[:, :, -1:]], dim=2)


class ShiftsCacheAttention(FaultyCacheAttention):
    """Keys and values no longer belong together: cached keys move on by one."""

    def fault(self, kv_BGSD: Tensor, is_key: bool) -> Tensor:
        return kv_BGSD.roll(1, dims=2) if is_key else kv_BGSD


class IgnoresPadding(LlamaForCausalLM):
    """Its mask is causal and nothing else."""

    def forward(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(*args, attention_mask=None, **kwargs)


class ForgetsWhileGenerating(LlamaForCausalLM):
    """generate() passes `memory=` to its first step alone."""

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super()._update_model_kwargs_for_generation(*args, **kwargs), "memory": None}


@pytest.mark.parametrize("backend", attention.BACKENDS)
@pytest.mark.parametrize("layers", [(0, 1), (0,), (1,)])
@pytest.mark.parametrize("cls", [DropsCacheAttention, DoublesCacheAttention, ShiftsCacheAttention])
def test_a_model_whose_cache_is_wrong_is_refused(cls: type, layers: tuple[int, ...], backend: str) -> None:
    model = tiny_model(backend=backend)
    for layer in layers:
        model.model.layers[layer].self_attn.__class__ = cls
    with pytest.raises(UnsupportedModel, match=r"'llama' .*differ by [\d.e-]+ \(allowed .*decoded with a cache"):
        prove(model)


@pytest.mark.parametrize("backend", attention.BACKENDS)
@pytest.mark.parametrize(
    ("cls", "path"), [(IgnoresPadding, r"(a padded row|generate\(\))"), (ForgetsWhileGenerating, r"generate\(\)")]
)
def test_a_model_that_ignores_padding_or_forgets_memory_is_refused(cls: type, path: str, backend: str) -> None:
    model = tiny_model(backend=backend)
    model.__class__ = cls
    with pytest.raises(UnsupportedModel, match=rf"'llama' .*differ by [\d.e-]+ \(allowed [\d.e-]+\) in {path}"):
        prove(model)


def test_a_capture_that_writes_to_the_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a newer transformers hands its cache over in a way that the capture does not know."""
    monkeypatch.setattr(attention, "Cache", type("AnotherCache", (), {}))
    with pytest.raises(UnsupportedModel, match=r"'llama' .*6 tokens are in its cache at layer 0 where 3 were given"):
        prove(tiny_model())


# -- newer libraries -----------------------------------------------------------------------------------------


def test_a_newer_library_is_named_with_both_versions() -> None:
    assert versions.untested({"torch": "2.13.1", "transformers": "5.24.9"}) == ""
    assert versions.untested({"torch": "2.9.0+cu128", "transformers": "5.3.0"}) == ""
    newer = versions.untested({"torch": "2.14.0+cpu", "transformers": "5.25.0.dev0"})
    assert newer == "torch 2.14.0+cpu (tested up to 2.13), transformers 5.25.0.dev0 (tested up to 5.24)"


def test_the_metadata_ends_where_the_tests_end() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = {need.name: need.specifier for need in map(Requirement, project["dependencies"])}
    for name, tested in versions.TESTED.items():
        major, minor = Version(tested).release
        assert f"{tested}.99" in needs[name]
        assert f"{major}.{minor + 1}" not in needs[name]


# -- rotary embeddings that change with the length -----------------------------------------------------------

BORDER = 64
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": BORDER,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + i for i in range(8)],
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": BORDER}


def long_model(name: str = "phi3", backend: str = "sdpa", rope: dict[str, Any] = LONGROPE) -> PreTrainedModel:
    return build(name, backend, rope_parameters=rope, original_max_position_embeddings=BORDER, vocab_size=259)


def ids(num_tokens: int) -> Tensor:
    return torch.randint(3, 259, (1, num_tokens), generator=torch.Generator().manual_seed(5))


def memory_of(model: PreTrainedModel, ids_BT: Tensor) -> LayerPrefix:
    with torch.no_grad():
        seen = capture(model, ids_BT, frozenset(range(NUM_LAYERS)))
    kvs = tuple(KV(shown.key_BGSD, shown.value_BGSD) for _, shown in sorted(seen.items()))
    return LayerPrefix(kvs, offset_tokens=ids_BT.shape[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_most_families_rotate_alike_at_every_length(name: str) -> None:
    assert rope_limit(build(name, backends(name)[-1])) is None


def test_where_a_family_changes_its_rotary_embedding_is_measured() -> None:
    assert rope_limit(long_model()) == BORDER
    assert rope_limit(long_model("llama")) == BORDER
    assert rope_limit(long_model("llama", rope=YARN)) is None
    dynamic = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    # one less than `max_position_embeddings`: at that very length it stays as a longer text before has left it
    model = build("llama", rope_parameters=dynamic)
    if rope_limit(model) == 2:  # older versions of transformers never go back after a longer text
        with pytest.raises(UnsupportedModel, match=r"'llama' .*rotated otherwise after a text of more than 2 tokens"):
            prove(model)
    else:
        assert rope_limit(model) == 255
        assert prove(model).beyond > 0


@pytest.mark.parametrize("backend", attention.BACKENDS)
@pytest.mark.parametrize("name", ["phi3", "llama"])
@torch.no_grad()
def test_longrope_is_exact_up_to_its_border_and_refused_past_it(name: str, backend: str) -> None:
    own, lm = long_model(name, backend), LM(long_model(name, backend), byte_tokenizer(), "long")
    assert lm.dims.max_positions == BORDER
    assert lm.proof.beyond > 10 * lm.proof.allowed
    text_BT = ids(BORDER)
    memory = memory_of(lm.model, text_BT[:, :40])
    error = lm.forward(text_BT[:, 40:], memory) - own(text_BT, use_cache=False).logits[:, 40:]
    assert error.abs().max() < 1e-5
    measured = rf"{BORDER}.*past them '{name}' rotates keys otherwise.*differ by {lm.proof.beyond:.2g}"
    with pytest.raises(ContextTooLong, match=rf"65 positions.*{measured}"):
        lm.forward(ids(25), memory)
    with pytest.raises(ContextTooLong, match=rf"65 tokens.*{measured}") as caught:
        lm.check_length(65)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_every_way_past_the_border_is_guarded() -> None:
    lm = LM(long_model(), byte_tokenizer(), "long")
    memory = memory_of(lm.model, ids(40))
    with pytest.raises(ContextTooLong, match="65 positions"):
        capture(lm.model, ids(65), frozenset([0]))
    with pytest.raises(ContextTooLong, match="65 positions"):
        lm.model.model(inputs_embeds=lm.model.get_input_embeddings()(ids(65)), memory=memory)
    cache = DynamicCache(config=lm.model.config)
    lm.forward(ids(20), memory, cache=cache)
    lm.forward(ids(4), memory, cache=cache)
    with pytest.raises(ContextTooLong, match="65 positions"):
        lm.forward(ids(1), memory, cache=cache)
    settings: Any = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert lm.model.generate(ids(20), memory=memory, max_new_tokens=5, **settings).shape == (1, 25)
    with pytest.raises(ContextTooLong, match="65 positions"):
        lm.model.generate(ids(20), memory=memory, max_new_tokens=6, **settings)


def test_a_session_is_guarded(tmp_path: Path) -> None:
    lm = LM(long_model(), byte_tokenizer(), "long")
    with rm.Session(lm, bank=tmp_path, method="memory3:dense") as session:
        session.write("Ada's code is 4417.")
        assert session.generate("Ada's code?", max_tokens=4).text is not None
        with pytest.raises(ContextTooLong, match=rf"{BORDER} positions: past them 'phi3' rotates keys otherwise"):
            session.generate("What is Ada's code?", max_tokens=60)


@torch.no_grad()
def test_without_memory_a_text_past_the_border_is_the_model_s_own() -> None:
    own, lm = long_model(), LM(long_model(), byte_tokenizer(), "long")
    assert torch.equal(lm.model(ids(90), use_cache=False).logits, own(ids(90), use_cache=False).logits)


def test_loading_twice_measures_and_guards_once() -> None:
    model = long_model()
    LM(model, byte_tokenizer(), "one")
    num_hooks = len(model.base_model._forward_pre_hooks)
    again = LM(model, byte_tokenizer(), "two")
    assert len(model.base_model._forward_pre_hooks) == num_hooks
    assert again.dims.max_positions == BORDER
