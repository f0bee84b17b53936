"""Muon or AdamW for groups of parameters known by name, on float32 copies where a model is of a smaller type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from remanence.errors import InputError


@dataclass(frozen=True)
class Group:
    """Parameters of one rule and one rate. Muon is for matrices."""

    rule: Literal["muon", "adamw"]
    names: tuple[str, ...]
    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)


class Optimizer:
    """`masters` are what is trained: float32, copied into parameters of another type after each step."""

    def __init__(self, trained: Mapping[str, nn.Parameter], groups: Sequence[Group], clip_norm: float) -> None:
        self.model = dict(trained)
        self.masters: dict[str, Tensor] = {}
        for name, p in self.model.items():
            self.masters[name] = p if p.dtype is torch.float32 else p.detach().float().clone()
        self.groups = tuple(group for group in groups if group.names)
        self.clip_norm = clip_norm
        self.parts = [_part(group, [self.masters[name] for name in group.names]) for group in self.groups]

    def collect(self) -> None:
        """Adds gradients of a smaller type to those of the float32 masters, and drops them."""
        for name, p in self.model.items():
            master = self.masters[name]
            if master is not p and p.grad is not None:
                master.grad = p.grad.float() if master.grad is None else master.grad + p.grad
                p.grad = None

    def clip(self) -> float:
        """The norm of all gradients before it is brought down to `clip_norm`."""
        self.collect()
        return float(clip_grad_norm_(self.masters.values(), self.clip_norm))

    def step(self, scale: float) -> None:
        """`scale` multiplies every rate; the gradients are dropped."""
        for group, part in zip(self.groups, self.parts, strict=True):
            part.param_groups[0]["lr"] = group.lr * scale
            part.step()
        self.copy_to_model()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        for name, p in self.model.items():
            p.grad = self.masters[name].grad = None

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for name, p in self.model.items():
            if self.masters[name] is not p:
                p.copy_(self.masters[name])

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """InputError, and nothing is changed, where these are not the weights of such a model."""
        mine, given = ({name: t.shape for name, t in found.items()} for found in (self.masters, weights))
        if odd := sorted(name for name in {**mine, **given} if mine.get(name) != given.get(name)):
            raise InputError(
                f"the weights are another model's: {odd[0]} differs", "use the recipe that they were trained by"
            )
        for name, master in self.masters.items():
            master.copy_(weights[name])
        self.copy_to_model()

    def state(self) -> dict[str, Tensor]:
        """`part/parameter/entry` -> tensor."""
        return dict(self._entries())

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        for i, (group, part) in enumerate(zip(self.groups, self.parts, strict=True)):
            for name in group.names:
                for entry, tensor in part.state[self.masters[name]].items():
                    yield f"{i}/{name}/{entry}", tensor

    def load(self, state: Mapping[str, Tensor]) -> None:
        for i, (group, part) in enumerate(zip(self.groups, self.parts, strict=True)):
            for name in group.names:
                lead, parameter = f"{i}/{name}/", self.masters[name]
                part.state[parameter] = {
                    key[len(lead) :]: tensor.clone()
                    if key.endswith("/step")
                    else tensor.to(parameter.device, copy=True)
                    for key, tensor in state.items()
                    if key.startswith(lead)
                }


def _part(group: Group, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if group.rule == "muon":
        decay = group.weight_decay
        return torch.optim.Muon(parameters, lr=group.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return torch.optim.AdamW(parameters, lr=group.lr, betas=group.betas, weight_decay=group.weight_decay, fused=True)
