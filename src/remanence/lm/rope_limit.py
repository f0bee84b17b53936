"""How many positions a model's rotary embedding rotates in one way: longrope and dynamic NTK change with the length."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from remanence.errors import ContextTooLong

READS_OR_WRITES = ("memory", "watch", "layer_hook")
"""Arguments of a forward pass that takes memory, or shows what memory is made of."""

_limits: WeakKeyDictionary[PreTrainedModel, int | None] = WeakKeyDictionary()
_reasons: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def rope_limit(model: PreTrainedModel) -> int | None:
    """The largest number of positions that are rotated as those of a short text are; None where there is no such limit.

    Keys that were written with a short text are wrong beside a longer one, whose keys are rotated otherwise. Measured
    on copies of the model's rotary embeddings, so that no family is named here; looked at up to twice
    `max_position_embeddings`.
    """
    if model not in _limits:
        highest = 2 * (getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0)
        found = [_limit_of(rotate, highest) for rotate in _rotations(model)] if highest else []
        _limits[model] = min((limit for limit in found if limit is not None), default=None)
    return _limits[model]


def refuse_beyond(model: PreTrainedModel, limit: int, reason: str) -> None:
    """Makes every forward pass that reads or writes memory raise ContextTooLong past `limit` positions.

    Passes without memory stay as they are. `reason`: what is wrong there, with the measured error.
    """

    def check(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(kwargs.get(name) is not None for name in READS_OR_WRITES):
            num_positions = _num_positions(module, args, kwargs)
            if num_positions > limit:
                raise ContextTooLong(
                    f"{num_positions} positions (memory's included) do not fit {limit}: {reason}",
                    "shorten the prompt or max_tokens, or recall fewer memories",
                )

    _reasons[model] = reason
    model.base_model.register_forward_pre_hook(check, with_kwargs=True)


def reason_of(model: PreTrainedModel) -> str:
    """What `refuse_beyond` was told for `model`; empty where nothing is refused."""
    return _reasons.get(model, "")


def _num_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The last position of a forward pass, plus one."""
    given = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
    if given.get("position_ids") is not None:
        return int(given["position_ids"].max()) + 1
    text = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    caches = [value for value in given.values() if isinstance(value, Cache)]
    return text.shape[1] + sum(int(cache.get_seq_length()) for cache in caches)


def _rotations(model: PreTrainedModel) -> list[Callable[[int], list[Tensor]]]:
    """For each rotary embedding (and layer type): how it rotates position 1 when the text has N positions."""
    found = []
    for module in model.modules():
        if "RotaryEmbedding" not in type(module).__name__:
            continue
        config = getattr(module, "config", None)
        rotary = copy.deepcopy(module, {id(config): config})
        by_type = "layer_type" in inspect.signature(module.forward).parameters
        for kinds in [[kind] for kind in sorted(set(model.config.get_text_config().layer_types))] if by_type else [[]]:
            found.append(_rotation(rotary, kinds, model.device))
    return found


def _rotation(rotary: nn.Module, kinds: list[str], device: torch.device) -> Callable[[int], list[Tensor]]:
    def rotate(num_positions: int) -> list[Tensor]:
        positions_BT = torch.tensor([[1, num_positions - 1]], device=device)
        made = rotary(torch.zeros(1, 2, 1, device=device), positions_BT, *kinds)
        return [part[:, 0] for part in (made if isinstance(made, tuple | list) else [made])]

    return rotate


@torch.no_grad()
def _limit_of(rotate: Callable[[int], list[Tensor]], highest: int) -> int | None:
    """Bisects where `rotate` changes. Each length is tried after a long one, since some embeddings keep state."""
    try:
        short = rotate(2)
        exact, changed = 2, highest
        if _equal(rotate(highest), short):
            return None
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):  # takes no positions of this shape
        return None
    while changed - exact > 1:
        rotate(highest)
        middle = (exact + changed) // 2
        exact, changed = (middle, changed) if _equal(rotate(middle), short) else (exact, middle)
    return exact


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
