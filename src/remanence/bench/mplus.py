"""The cost of an M+ pool: writing, the first token after much text, retrieval, offload; beside the model alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from remanence.errors import ContextTooLong, InputError
from remanence.lm.decode import pad_left
from remanence.lm.lm import LM
from remanence.lm.lora import LoraConfig, add_roles
from remanence.lm.tiny import byte_tokenizer
from remanence.measurement import Advance, Figures, MeasurementOptions, envelope
from remanence.methods.mplus.method import MPlus, MPlusConfig
from remanence.methods.mplus.pool import Pool
from remanence.methods.mplus.rankers import at_random

PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Shape:
    """The shape of a model with random weights, and M+ at its scale."""

    model: dict[str, Any]
    lora: LoraConfig
    method: MPlusConfig


SHAPES = {
    "nano": Shape(
        {
            "vocab_size": 8192,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "max_position_embeddings": 2048,
        },
        LoraConfig(rank=64, alpha=128, dropout=0.0),
        MPlusConfig(128, 8, 64, pool_blocks=2, long_blocks=1, key_width=64, ranked="writes", short="own"),
    ),
    "llama-3.1-8b": Shape(
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rope_theta": 500_000.0,
        },
        LoraConfig(rank=16, alpha=32, dropout=0.0),
        MPlusConfig(),
    ),
}


@dataclass(frozen=True)
class Options(MeasurementOptions):
    """`tokens` tokens are written before the first question. Times are medians of `repeats`."""

    shape: str = "nano"
    tokens: int = 16_000
    repeats: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in SHAPES:
            raise InputError(f"no shape is called {self.shape!r}", f"use one of {', '.join(SHAPES)}")
        least = SHAPES[self.shape].method.chunk_tokens
        if self.tokens < least:
            raise InputError(f"{self.tokens} tokens are less than a chunk", f"use {least} or more")


def run(options: Options, advance: Advance) -> dict[str, Any]:
    """The envelope of the pool on the model's device ("resident") and in RAM ("offload", "offload_int8").

    With offload the rows of a layer are fetched while the layer before computes; with int8 they are read as int8.
    """
    shape, device = SHAPES[options.shape], "cuda" if torch.cuda.is_available() else "cpu"
    lm = _model(shape, device, options.seed)
    systems: dict[str, Figures] = {"plain": _plain(lm, shape, options)}
    for name in ("resident", "offload", "offload_int8"):
        method = MPlus(replace(shape.method, offload=name != "resident", small_prefix=name == "offload_int8"))
        method.modules(lm).to(lm.device, lm.dtype)
        systems[name] = _pooled(lm, method, options, advance)
        del method
    conditions = {"shape": options.shape, "device": device, "tokens": options.tokens}
    return envelope("bench", "mplus", systems, conditions=conditions, ratios=_ratios(systems))


def _model(shape: Shape, device: str, seed: int) -> LM:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            model: Any = LlamaForCausalLM(LlamaConfig(**shape.model, tie_word_embeddings=False)).eval()
            add_roles(model, shape.lora)
        finally:
            torch.set_default_dtype(torch.float32)
    return LM(model.to(dtype), byte_tokenizer(), "random")


def _plain(lm: LM, shape: Shape, options: Options) -> Figures:
    """The model alone: a forward pass over a chunk, and the first token after a short prompt."""
    chunk = _ids(lm, shape.method.chunk_tokens, options.seed)
    prompt = _ids(lm, PROMPT_TOKENS, options.seed + 1)
    per_chunk = _median(lm, lambda: lm.forward(torch.tensor([chunk], device=lm.device), last_only=True), options)
    return {
        "tokens_per_second": len(chunk) / per_chunk,
        "first_token_seconds": _median(
            lm, lambda: lm.forward(torch.tensor([prompt], device=lm.device), last_only=True), options
        ),
        "first_token_with_all_text_seconds": _all_text(lm, options),
        "peak_bytes": _peak(lm),
    }


def _all_text(lm: LM, options: Options) -> float | None:
    """Seconds to the first token after all text; None if it does not fit the model's positions."""
    try:
        lm.check_length(options.tokens)
    except ContextTooLong:
        return None
    ids_BT = torch.tensor([_ids(lm, options.tokens, options.seed)], device=lm.device)
    return _median(lm, lambda: lm.forward(ids_BT, last_only=True), replace(options, repeats=1))


def _pooled(lm: LM, method: MPlus, options: Options, advance: Advance) -> Figures:
    _reset_peak(lm)
    pool, chunk, seconds, done = method.fresh(lm, options.seed), method.config.chunk_tokens, [], 0
    while done < options.tokens:
        size = min(chunk, options.tokens - done)
        start = time.perf_counter()
        pool = method.add(lm, pool, _ids(lm, size, options.seed + done))
        _wait(lm)
        seconds.append((time.perf_counter() - start) / size)
        done += size
        advance(size)
    first = _median(lm, lambda: _ask(lm, method, pool, True), options)
    without = _median(lm, lambda: _ask(lm, method, pool, False), options)
    return {
        "tokens_per_second": 1 / statistics.median(seconds),
        "first_token_seconds": first,
        "first_token_unscored_seconds": without,
        "retrieval_share": max(0.0, 1 - without / first),
        "peak_bytes": _peak(lm),
        "pool_bytes": pool.num_bytes,
    }


def _ask(lm: LM, method: MPlus, pool: Pool, scored: bool) -> None:
    """The first token after a prompt. `scored` False: random rows, so that the cost of ranking is left out."""
    ids_BT, mask_BT = pad_left([_ids(lm, PROMPT_TOKENS, 1)], lm.device)
    prefix = method.prefix(lm, [pool], mask_BT, None if scored else at_random(0))
    lm.forward(ids_BT, prefix, last_only=True, role="read")


def _median(lm: LM, work: Callable[[], object], options: Options) -> float:
    """The median of the seconds of `work`, after one call that is not counted."""
    seconds = []
    with torch.inference_mode():
        for _ in range(options.repeats + 1):
            start = time.perf_counter()
            work()
            _wait(lm)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _ids(lm: LM, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(lm.dims.vocab_size, (count,), generator=generator).tolist()


def _wait(lm: LM) -> None:
    if lm.device.type == "cuda":
        torch.cuda.synchronize()


def _reset_peak(lm: LM) -> None:
    if lm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(lm: LM) -> int | None:
    return torch.cuda.max_memory_allocated() if lm.device.type == "cuda" else None


def _ratios(systems: dict[str, Figures]) -> dict[str, float]:
    def of(one: str, other: str, figure: str) -> float:
        return float(systems[one][figure] or 0) / float(systems[other][figure] or 1)

    ratios = {
        "writing_to_plain_pass": of("plain", "resident", "tokens_per_second"),
        "first_token_to_plain": of("resident", "plain", "first_token_seconds"),
        "offload_first_token": of("offload", "resident", "first_token_seconds"),
        "int8_first_token": of("offload_int8", "offload", "first_token_seconds"),
        "offload_writing": of("resident", "offload", "tokens_per_second"),
        "retrieval_share": float(systems["resident"]["retrieval_share"] or 0),
    }
    if all_text := systems["plain"]["first_token_with_all_text_seconds"]:
        ratios["first_token_to_all_text"] = float(systems["resident"]["first_token_seconds"] or 0) / all_text
    return ratios
