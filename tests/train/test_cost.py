"""Shapes and FLOPs against the numbers that Memory³ prints."""

from __future__ import annotations

import pytest
import torch

from remanence.train.core.model import build_model
from remanence.train.core.shapes import SHAPES, Shape
from remanence.train.cost.flops import (
    MemoryShape,
    break_even,
    forward_flops,
    peak_of,
    read_flops,
    step_flops,
    text_flops,
    training_flops,
    write_flops,
)

MEMORY = MemoryShape()
TERA = 1e12


def test_the_papers_shapes():
    two, less = SHAPES["2b"], SHAPES["0.9b"]
    assert two.num_layers * two.layer_parameters == 2_433_024_000
    assert less.num_layers * less.layer_parameters == pytest.approx(0.9227e9, rel=1e-4)
    assert (two.head_dim, less.head_dim) == (80, 64)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_model(name):
    with torch.device("meta"):
        model = build_model(SHAPES[name], 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == SHAPES[name].num_parameters


def test_heads_need_not_fill_the_width():
    shape = Shape(width=96, num_heads=2, num_kv_heads=1, head_width=16, num_layers=1)
    with torch.device("meta"):
        model = build_model(shape, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.num_parameters


def test_the_cost_of_each_kind_of_memory():
    """Memory³ App. A: 0.308 to write, 1.44e-4 to read, 0.624 as text, 2.24 to train on."""
    shape = SHAPES["2b"]
    assert write_flops(shape, MEMORY) / TERA == pytest.approx(0.30818, abs=5e-6)
    assert read_flops(shape, MEMORY) / TERA == pytest.approx(1.4418e-4, abs=5e-9)
    assert text_flops(shape, MEMORY) / TERA == pytest.approx(0.62422, abs=5e-6)
    assert training_flops(shape, 2048) / 16 / TERA == pytest.approx(2.2385, abs=5e-5)
    less, more = break_even(shape, MEMORY)
    assert (less, more) == (pytest.approx(0.494, abs=5e-4), pytest.approx(13_388, abs=1))


def test_a_step_with_memory_beside_one_without():
    """1.83 with the gradient through writing, 1.28 without: the paper's step took slightly more than twice as long."""
    shape = SHAPES["2b"]
    assert forward_flops(shape, 2048) / TERA == pytest.approx(11.94, abs=5e-3)
    assert 32 * write_flops(shape, MEMORY) / TERA == pytest.approx(9.86, abs=5e-3)
    plain = training_flops(shape, 2048)
    assert training_flops(shape, 2048, MEMORY) / plain == pytest.approx(1.83, abs=5e-3)
    assert training_flops(shape, 2048, MEMORY, stop_gradient=True) / plain == pytest.approx(1.28, abs=5e-3)


def test_a_step_costs_what_its_sequences_cost() -> None:
    shape = SHAPES["nano"]
    assert step_flops(shape, 4, 256, 1024) == pytest.approx(4 * training_flops(shape, 256))
    fewer = step_flops(shape, 4, 256, 100)
    assert step_flops(shape, 4, 256, 1024) - fewer == pytest.approx(6 * 924 * shape.vocab_size * shape.width)
    memory = MemoryShape(reference_tokens=128, kept_tokens=8, chunk_tokens=64, memories=1)
    read = step_flops(shape, 4, 64, 256, [128] * 4, 8)
    assert read == pytest.approx(4 * training_flops(shape, 64, memory))
    detached = step_flops(shape, 4, 64, 256, [128] * 4, 8, writes=False)
    assert detached == pytest.approx(4 * training_flops(shape, 64, memory, stop_gradient=True))
    assert step_flops(shape, 1, 64, 64, [5], 8) < step_flops(shape, 1, 64, 64, [9], 8)


def test_a_gpu_is_known_by_a_part_of_its_name() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("a processor") is None
