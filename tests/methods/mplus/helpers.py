"""A small M+ on TinyLM whose adapters, projectors and first vectors are random, so that nothing is zero by chance."""

from __future__ import annotations

from typing import Any

import torch

from remanence.lm.lm import LM
from remanence.lm.lora import LoraConfig, add_roles, role_parameters
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.methods.mplus.method import MPlus, MPlusConfig

LORA = LoraConfig(rank=4, alpha=8.0)
SMALL: dict[str, Any] = {
    "chunk_tokens": 24,
    "min_chunk_tokens": 4,
    "write_rows": 6,
    "pool_blocks": 3,
    "long_blocks": 2,
    "key_width": 16,
    "merge_writes": 3,
    "capacity_rows": 72,
    "precision": "float32",
}


def small_lm(backend: str = "sdpa", model: Any = None) -> LM:
    model = model or tiny_model(backend=backend)
    add_roles(model, LORA)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in role_parameters(model):
            torch.nn.init.normal_(parameter, std=0.1)
    return LM(model.eval(), byte_tokenizer(), "tiny-mplus")


def small(lm: LM, **changes: Any) -> MPlus:
    method = MPlus(MPlusConfig(**{**SMALL, **changes}))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for parameter in method.modules(lm).parameters():
            torch.nn.init.normal_(parameter, std=0.12)  # sigmoids must not saturate: equal scores have no order
        method.modules(lm).pool_LNC.normal_()
    return method


def small_trained() -> LM:
    """A model that carries its latent memory, as a folder that was trained does."""
    lm = small_lm()
    lm.latent = {name: tensor.clone() for name, tensor in small(lm).modules(lm).state_dict().items()}
    lm.settings = {"mplus": dict(SMALL)}
    return lm
