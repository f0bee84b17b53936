"""A tiny checkpoint in exactly the format of YuWangX/mplus-8b, written here and loaded by `rm.load`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import remanence as rm
from remanence.errors import InputError
from remanence.lm import published
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.methods.mplus.method import MPlus, MPlusConfig

K, BLOCKS, LONG_BLOCKS, E, S, R = 4, 5, 2, 8, 20, 2
TARGETS = ["q_proj", "v_proj", "k_proj", "up_proj", "down_proj", "gate_proj"]


def checkpoint(folder: Path, *, long: bool = True, shards: int = 2) -> dict[str, torch.Tensor]:
    """Writes config, tokenizer and weights; M+ with `long`, else MemoryLLM-8B."""
    torch.manual_seed(0)
    base = tiny_model()
    L, C = base.config.num_hidden_layers, base.config.hidden_size
    pool_rows = K * (BLOCKS - (LONG_BLOCKS if long else 0))
    state = {
        "memory": torch.randn(L, pool_rows, C),
        "new_memory_positional_emb": torch.randn(1, 1, C),
        "bos_embedding": torch.randn(L, 1, C),
    }
    for name, weight in base.state_dict().items():
        module = name.removesuffix(".weight")
        if module.split(".")[-1] in TARGETS:
            state[f"{module}.base_layer.weight"] = weight
            for adapter in ("default", "decoder_adapter"):
                state[f"{module}.lora_A.{adapter}.weight"] = torch.randn(R, weight.shape[1])
                state[f"{module}.lora_B.{adapter}.weight"] = torch.randn(weight.shape[0], R)
        else:
            state[name] = weight
    for i in range(L):
        if long:
            for kind in ("query", "key", "encoder_query"):
                state[f"model.layers.{i}.self_attn.{kind}_proj.0.weight"] = torch.randn(2 * E, C)
                state[f"model.layers.{i}.self_attn.{kind}_proj.2.weight"] = torch.randn(E, 2 * E)
            state |= {f"ltm.{i}": torch.randn(S, C), f"ltm_keys.{i}": torch.randn(S, E)}
            state[f"ltm_ages.{i}"] = torch.arange(S).float() + 59_999
            state[f"ltm_recall_frequencies.{i}"] = torch.full((S,), 10.0)
    if not long:
        state["initialized"] = torch.ones((), dtype=torch.uint8)
    config = {**base.config.to_dict(), "num_blocks": BLOCKS, "num_tokens": K, "add_decoder_lora": True}
    config |= {"lora_config": {"inference_mode": False, "r": R, "lora_alpha": 4, "lora_dropout": 0.1}}
    config["lora_config"]["target_modules"] = TARGETS
    if long:
        config |= {"num_ltm_blocks": LONG_BLOCKS, "selector_hidden_dim": E, "update_ltm_frequency": 3}
        config |= {"initial_rf_when_moving_stm_to_ltm": 10, "decay_frequency": 1, "ltm_initial_size": S}
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    names = sorted(state)
    for shard in range(shards):
        part = {name: state[name].contiguous().clone() for name in names[shard::shards]}
        save_file(part, folder / f"model-{shard + 1:05}-of-{shards:05}.safetensors")
    return state


def test_load_reads_it_whole_and_ages_exactly(tmp_path: Path):
    state = checkpoint(tmp_path)
    lm = rm.load(tmp_path)
    method = MPlus(MPlusConfig(**lm.settings["mplus"], precision="float32"))
    pool = method.fresh(lm)
    assert torch.equal(pool.row_LNC, state["memory"])
    assert torch.equal(pool.long.blocks.rows(1, torch.arange(S)), state["ltm.1"])
    assert (pool.clock - pool.long.blocks.born(0)).tolist() == [59_999 + i for i in range(S)]
    assert torch.equal(method.modules(lm).key[1][2].weight, state["model.layers.1.self_attn.key_proj.2.weight"])
    pool = method.add(lm, pool, list(range(3, 12)))
    with torch.no_grad():
        assert lm.forward(torch.tensor([[5, 6]]), method.prefix(lm, [pool]), role="read").isfinite().all()


def test_the_frequencies_are_rounded_to_bfloat16(tmp_path: Path):
    checkpoint(tmp_path)
    rotary = [module for module in rm.load(tmp_path).model.modules() if hasattr(module, "inv_freq")]
    exact = [module for module in tiny_model().modules() if hasattr(module, "inv_freq")]
    assert rotary
    for ours, plain in zip(rotary, exact, strict=True):
        assert torch.equal(ours.inv_freq, plain.inv_freq.bfloat16().float())
        assert not torch.equal(ours.inv_freq, plain.inv_freq)


def test_memoryllm_has_no_long_term_memory_and_reads_its_pool(tmp_path: Path):
    checkpoint(tmp_path, long=False)
    lm = rm.load(tmp_path)
    method = MPlus(MPlusConfig(**lm.settings["mplus"]))
    prefix = method.prefix(lm, [method.add(lm, method.fresh(lm), list(range(3, 12)))])
    assert prefix.offset_tokens == 1 + K * BLOCKS
    with torch.no_grad():
        assert lm.forward(torch.tensor([[5, 6]]), prefix, role="read").isfinite().all()
    assert all(len(index_N) == 0 for layer in prefix.chosen.values() for index_N in layer)


def test_a_smaller_dtype_rounds_weights_alone(tmp_path: Path):
    state = checkpoint(tmp_path)
    made = published.convert(json.loads((tmp_path / "config.json").read_text()), state, dtype=torch.bfloat16)
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    frequencies = [module.inv_freq for module in made.model.modules() if hasattr(module, "inv_freq")]
    assert not any(torch.equal(found, found.bfloat16().float()) for found in frequencies)


def test_a_missing_tensor_is_named(tmp_path: Path):
    state = checkpoint(tmp_path, shards=1)
    del state["model.norm.weight"]
    save_file(
        {name: t.contiguous().clone() for name, t in state.items()}, tmp_path / "model-00001-of-00001.safetensors"
    )
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        rm.load(tmp_path)
