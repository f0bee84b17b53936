"""A cache layer with room against transformers' own: whatever is done to both, they hold the same."""

from __future__ import annotations

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from remanence.lm.cache import ROOM_TOKENS, RoomyLayer, roomy_cache
from remanence.lm.tiny import tiny_model

STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, ROOM_TOKENS + 9)),
    st.tuples(st.sampled_from(["add", "crop", "front", "swap", "copy"]), st.just(1)),
)


def change(layer: DynamicLayer, step: str, size: int, generator: torch.Generator) -> DynamicLayer:
    """One step of what decoding does to a layer, or others do; the same for the same state of the generator."""
    drawn = torch.randn(2, 2, 3, size, 4, generator=generator)
    if step == "add":
        layer.update(drawn[0], drawn[1])
    elif step == "crop":
        layer.crop(-size)
    elif step == "front":
        layer.keys, layer.values = (torch.cat([drawn[i], part], 2) for i, part in enumerate((layer.keys, layer.values)))
    elif step == "swap":
        layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)
    return copy.deepcopy(layer) if step == "copy" else layer


@given(st.lists(STEPS, max_size=12), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_it_holds_what_a_plain_layer_holds(steps: list[tuple[str, int]], seed: int) -> None:
    found = []
    for layer in (DynamicLayer(), RoomyLayer()):
        generator = torch.Generator().manual_seed(seed)
        layer, held = change(layer, "add", 3, generator), []
        for step, size in steps:
            layer = change(layer, step, size, generator)
            held.append((layer.keys, layer.keys.clone(), layer.values, layer.values.clone()))
        for keys, keys_then, values, values_then in held:  # what was handed out before does not change
            assert torch.equal(keys, keys_then)
            assert torch.equal(values, values_then)
        found.append((layer.keys, layer.values, layer.get_seq_length()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


def test_single_tokens_are_written_where_there_is_room() -> None:
    layer = RoomyLayer()
    key = torch.randn(1, 2, 5, 4)
    layer.update(key, key)
    places = []
    for _ in range(ROOM_TOKENS):
        layer.update(key[:, :, :1], key[:, :, :1])
        places.append(layer.keys.data_ptr())
    assert len(set(places)) == 1


def test_every_plain_layer_of_a_model_has_room() -> None:
    model = tiny_model(num_layers=3)
    assert [type(layer) for layer in roomy_cache(model).layers] == [RoomyLayer] * 3
