"""What a training step costs with memory and without, measured on random weights beside what arithmetic says."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from remanence.errors import InputError, suggest
from remanence.lm.lm import LM
from remanence.lm.tiny import byte_tokenizer
from remanence.methods.memory3.method import Memory3, paper
from remanence.provenance import commit, machine
from remanence.train.cost import MemoryShape, peak_of, training_flops
from remanence.train.model import build_model, to_bfloat16, use_fast_attention
from remanence.train.optimizer import Group, Optimizer
from remanence.train.sequences import Sequences, sequence_loss
from remanence.train.shapes import SHAPES

STEPS: dict[str, dict[str, Any]] = {"warmup": {}, "continual": {"writes": True}, "detached": {"writes": False}}


@dataclass(frozen=True)
class Options:
    """`rows` sequences of `tokens` a step; times are medians of `repeats` rounds after one that is not counted."""

    shape: str = "nano"
    rows: int = 2
    tokens: int = 1024
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InputError(f"no shape is called {self.shape!r}", suggest(self.shape, list(SHAPES)))
        if self.rows < 1 or self.repeats < 1 or self.tokens < 64 or self.tokens % 64:
            raise InputError("rows and repeats are 1 or more, tokens a multiple of 64", "change --rows, --tokens")
        room = SHAPES[self.shape].max_positions - 192
        if self.tokens > room:
            raise InputError(f"{self.tokens} tokens and a memory's positions are too many", f"use at most {room}")


def run(options: Options, advance: Callable[[int], None]) -> dict[str, Any]:
    """Seconds, tokens a second and (where the device's peak is known) MFU of each kind of step."""
    shape = SHAPES[options.shape]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(shape, options.seed).to(device)
    to_bfloat16(model)
    lm = LM(model, byte_tokenizer(), options.shape)
    if device.type == "cpu":
        use_fast_attention(model)
    names = tuple(name for name, _ in model.named_parameters())
    optimizer = Optimizer(dict(model.named_parameters()), [Group("adamw", names, 1e-4)], 1.0)
    batch = _batch(options, shape.vocab_size, device)
    took: dict[str, list[tuple[float, int | None]]] = {name: [] for name in STEPS}
    for _ in range(options.repeats + 1):  # in turn, so that what else the machine does falls on all of them
        for name, how in STEPS.items():
            took[name].append(_step(lm, batch, optimizer, how))
            advance(1)
    measured = {name: (statistics.median(s for s, _ in found[1:]), found[-1][1]) for name, found in took.items()}
    flops = {name: options.rows * _flops(options, how) for name, how in STEPS.items()}
    seconds = {name: median for name, (median, _) in measured.items()}
    return {
        "bench": "train",
        "commit": commit(),
        "machine": machine(),
        "conditions": {
            "shape": options.shape,
            "rows": options.rows,
            "tokens": options.tokens,
            "repeats": options.repeats,
        },
        "results": {name: _figures(measured[name], flops[name], options) for name in STEPS},
        "ratios": {
            f"{name}_to_warmup{suffix}": found[name] / found["warmup"]
            for suffix, found in (("", seconds), ("_by_arithmetic", flops))
            for name in ("continual", "detached")
        },
    }


def _flops(options: Options, how: dict[str, Any]) -> float:
    memory = MemoryShape() if how else None
    return training_flops(SHAPES[options.shape], options.tokens, memory, stop_gradient=not how.get("writes", True))


def _batch(options: Options, vocab_size: int, device: torch.device) -> Sequences:
    generator = torch.Generator().manual_seed(options.seed)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randint(5, vocab_size, size, generator=generator)

    ids_BT = drawn(options.rows, options.tokens).to(device)
    return Sequences(ids_BT, drawn(options.rows, options.tokens // 64, 128).tolist())


def _step(lm: LM, batch: Sequences, optimizer: Optimizer, how: dict[str, Any]) -> tuple[float, int | None]:
    """(seconds, peak bytes on an accelerator) of one step."""
    has_gpu = lm.device.type == "cuda"
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    begun = time.monotonic()
    with torch.autocast(lm.device.type, torch.bfloat16):
        loss = sequence_loss(lm, batch, Memory3(paper(lm)) if how else None, **how)
    loss.backward()
    optimizer.clip()
    optimizer.step(1.0)
    if has_gpu:
        torch.cuda.synchronize()
    return time.monotonic() - begun, torch.cuda.max_memory_allocated() if has_gpu else None


def _figures(measured: tuple[float, int | None], flops: float, options: Options) -> dict[str, float | int | None]:
    seconds, peak_bytes = measured
    found: dict[str, float | int | None] = {
        "seconds_per_step": seconds,
        "tokens_per_second": options.rows * options.tokens / seconds,
        "flops_per_second": flops / seconds,
    }
    if peak_bytes is not None:
        peak = peak_of(torch.cuda.get_device_name())
        found |= {"peak_bytes": peak_bytes, "mfu": None if peak is None else flops / seconds / peak}
    return found
