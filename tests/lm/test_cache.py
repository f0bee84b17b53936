"""A cache layer with room against transformers' own: after the same steps they hold the same."""

from __future__ import annotations

import copy

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from remanence.lm.cache import ROOM_TOKENS, RoomyLayer, roomy_cache
from remanence.lm.tiny import tiny_model
from tests.lm.families import build

STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, ROOM_TOKENS + 9)),
    st.tuples(st.sampled_from(["add", "crop", "front", "swap", "more rows", "fewer rows"]), st.just(1)),
)


def change(layer: DynamicLayer, step: str, size: int, generator: torch.Generator) -> None:
    """One step of what decoding does to a layer, or others do; the same for the same state of the generator."""
    rows = len(layer.keys) if layer.is_initialized else 2  # a layer that was emptied keeps its number of rows
    drawn = torch.randn(2, rows, 3, size, 4, generator=generator)
    if step == "add" or not layer.get_seq_length():
        layer.update(drawn[0], drawn[1])
    elif step == "crop":
        layer.crop(-size)
    elif step == "front":
        layer.keys, layer.values = (torch.cat([drawn[i], part], 2) for i, part in enumerate((layer.keys, layer.values)))
    elif step == "swap":
        layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)
    elif step == "more rows":
        layer.batch_repeat_interleave(2)
    elif step == "fewer rows":
        layer.batch_select_indices(torch.tensor([len(layer.keys) - 1]))


@given(st.lists(STEPS, max_size=12), st.integers(0, 12), st.integers(0, 99))
@example([("add", 1)] * 3 + [("crop", 1)] * 5 + [("more rows", 1), ("crop", 1), ("add", 1)], 12, 0)
@settings(max_examples=60, deadline=None)
def test_it_holds_what_a_plain_layer_holds(steps: list[tuple[str, int]], copied_after: int, seed: int) -> None:
    """And so does a copy that goes its own way, without a change to what was handed out before."""
    found = []
    for layer in (DynamicLayer(), RoomyLayer()):
        layers, held, generator = [layer], [], torch.Generator().manual_seed(seed)
        for i, (step, size) in enumerate([("add", 3), *steps]):
            layers += [copy.deepcopy(layer)] if i == copied_after else []
            for each in layers:
                change(each, step, size, generator)
                if each.get_seq_length():
                    held.append((each.keys, each.keys.clone(), each.values, each.values.clone()))
        for keys, keys_then, values, values_then in held:
            assert torch.equal(keys, keys_then)
            assert torch.equal(values, values_then)
        found.append([(each.get_seq_length(), each.keys, each.values) for each in layers])
    for (length, keys, values), (other_length, other_keys, other_values) in zip(*found, strict=True):
        assert length == other_length
        assert length == 0 or torch.equal(keys, other_keys)
        assert length == 0 or torch.equal(values, other_values)


def test_single_tokens_are_written_where_there_is_room() -> None:
    layer = RoomyLayer()
    key = torch.randn(1, 2, 5, 4)
    layer.update(key, key)
    places = []
    for _ in range(ROOM_TOKENS):
        layer.update(key[:, :, :1], key[:, :, :1])
        places.append(layer.keys.data_ptr())
    assert len(set(places)) == 1


def test_every_plain_layer_of_a_model_has_room_and_no_other() -> None:
    assert [type(layer) for layer in roomy_cache(tiny_model(num_layers=3)).layers] == [RoomyLayer] * 3
    model = build("gemma2", "eager")
    ours, theirs = roomy_cache(model).layers, DynamicCache(config=model.config).layers
    assert [RoomyLayer if type(layer) is DynamicLayer else type(layer) for layer in theirs] == [*map(type, ours)]
    assert len({*map(type, ours)}) == 2
