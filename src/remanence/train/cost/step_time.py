"""Measures a training step with memory and without, on random weights, and compares it with its FLOPs."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from remanence.errors import InputError, suggest
from remanence.lm.lm import LM
from remanence.lm.tiny import byte_tokenizer
from remanence.measurement import Advance, MeasurementOptions, envelope
from remanence.methods.memory3.method import Memory3, paper
from remanence.train.core.model import build_model, to_bfloat16, use_fast_attention
from remanence.train.core.optimizer import Optimizer, ParamGroup
from remanence.train.core.shapes import SHAPES, MemoryShape
from remanence.train.cost.flops import peak_of, training_flops
from remanence.train.examples.sequences import Sequences
from remanence.train.memory3.sequences import sequence_loss

STEPS: dict[str, dict[str, Any]] = {"warmup": {}, "continual": {"writes": True}, "detached": {"writes": False}}


@dataclass(frozen=True)
class Options(MeasurementOptions):
    """`rows` sequences of `tokens` tokens per step. Times are medians of `repeats` rounds, after one for warm-up."""

    shape: str = "nano"
    rows: int = 2
    tokens: int = 1024
    repeats: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in SHAPES:
            raise InputError(f"no shape is called {self.shape!r}", suggest(self.shape, list(SHAPES)))
        if self.tokens % 64:
            raise InputError(f"tokens is {self.tokens}", "use a multiple of 64")
        room = SHAPES[self.shape].max_positions - 192
        if self.tokens > room:
            raise InputError(
                f"{self.tokens} tokens and the positions of a memory exceed the shape's positions",
                f"use at most {room}",
            )


def run(options: Options, advance: Advance) -> dict[str, Any]:
    """Seconds, tokens per second and (if the device's peak is known) MFU of each kind of step.

    `advance(1)` is called after each step.
    """
    shape = SHAPES[options.shape]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(shape, options.seed).to(device)
    to_bfloat16(model)
    lm = LM(model, byte_tokenizer(), options.shape)
    if device.type == "cpu":
        use_fast_attention(model)
    names = tuple(name for name, _ in model.named_parameters())
    optimizer = Optimizer(dict(model.named_parameters()), [ParamGroup("adamw", names, 1e-4)], 1.0)
    batch = _batch(options, shape.vocab_size, device)
    times: dict[str, list[tuple[float, int | None]]] = {name: [] for name in STEPS}
    for _ in range(options.repeats + 1):  # in turn, so that other load on the machine affects all of them
        for name, step_options in STEPS.items():
            times[name].append(_step(lm, batch, optimizer, step_options))
            advance(1)
    measured = {name: (statistics.median(s for s, _ in steps[1:]), steps[-1][1]) for name, steps in times.items()}
    flops = {name: options.rows * _flops(options, step_options) for name, step_options in STEPS.items()}
    seconds = {name: median for name, (median, _) in measured.items()}
    return envelope(
        "bench",
        "train",
        {name: _figures(measured[name], flops[name], options) for name in STEPS},
        conditions={
            "shape": options.shape,
            "rows": options.rows,
            "tokens": options.tokens,
            "repeats": options.repeats,
        },
        ratios={
            f"{name}_to_warmup{suffix}": figures[name] / figures["warmup"]
            for suffix, figures in (("", seconds), ("_by_arithmetic", flops))
            for name in ("continual", "detached")
        },
    )


def _flops(options: Options, step_options: dict[str, Any]) -> float:
    memory = MemoryShape() if step_options else None
    return training_flops(
        SHAPES[options.shape], options.tokens, memory, stop_gradient=not step_options.get("writes", True)
    )


def _batch(options: Options, vocab_size: int, device: torch.device) -> Sequences:
    generator = torch.Generator().manual_seed(options.seed)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randint(5, vocab_size, size, generator=generator)

    ids_BT = drawn(options.rows, options.tokens).to(device)
    return Sequences(ids_BT, drawn(options.rows, options.tokens // 64, 128).tolist())


def _step(lm: LM, batch: Sequences, optimizer: Optimizer, step_options: dict[str, Any]) -> tuple[float, int | None]:
    """(seconds, peak bytes on an accelerator) of one step."""
    has_gpu = lm.device.type == "cuda"
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    with torch.autocast(lm.device.type, torch.bfloat16):
        loss = sequence_loss(lm, batch, Memory3(paper(lm)) if step_options else None, **step_options)
    loss.backward()
    optimizer.clip()
    optimizer.step(1.0)
    if has_gpu:
        torch.cuda.synchronize()
    return time.monotonic() - start, torch.cuda.max_memory_allocated() if has_gpu else None


def _figures(measured: tuple[float, int | None], flops: float, options: Options) -> dict[str, float | int | None]:
    seconds, peak_bytes = measured
    figures: dict[str, float | int | None] = {
        "seconds_per_step": seconds,
        "tokens_per_second": options.rows * options.tokens / seconds,
        "flops_per_second": flops / seconds,
    }
    if peak_bytes is not None:
        peak = peak_of(torch.cuda.get_device_name())
        figures |= {"peak_bytes": peak_bytes, "mfu": None if peak is None else flops / seconds / peak}
    return figures
