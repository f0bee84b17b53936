"""Muon or AdamW for groups of named parameters, on float32 copies if the model's dtype is smaller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from remanence.errors import InputError


@dataclass(frozen=True)
class ParamGroup:
    """Parameters (by name) with one update rule and one learning rate. Muon takes matrices only."""

    rule: Literal["muon", "adamw"]
    names: tuple[str, ...]
    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)


class Optimizer:
    """Updates `masters`, the float32 weights by name, and copies them into the model's parameters after each step."""

    def __init__(self, trained: Mapping[str, nn.Parameter], groups: Sequence[ParamGroup], clip_norm: float) -> None:
        self.model = dict(trained)
        self.masters: dict[str, Tensor] = {}
        for name, p in self.model.items():
            self.masters[name] = p if p.dtype is torch.float32 else p.detach().float().clone()
        self.groups = tuple(group for group in groups if group.names)
        self.clip_norm = clip_norm
        self.parts = [_part(group, [self.masters[name] for name in group.names]) for group in self.groups]

    def collect(self) -> None:
        """Moves gradients of a smaller dtype to the float32 masters, where they are added up."""
        for name, p in self.model.items():
            master = self.masters[name]
            if master is not p and p.grad is not None:
                master.grad = p.grad.float() if master.grad is None else master.grad + p.grad
                p.grad = None

    def clip(self) -> float:
        """Clips the gradients to `clip_norm`; returns their norm before."""
        self.collect()
        return float(clip_grad_norm_(self.masters.values(), self.clip_norm))

    def step(self, scale: float) -> None:
        """One update with every learning rate multiplied by `scale`; the gradients are dropped."""
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
        """Sets all masters. InputError if names or shapes differ from them; then nothing is changed."""
        own, other = ({name: t.shape for name, t in tensors.items()} for tensors in (self.masters, weights))
        if odd := sorted(name for name in {**own, **other} if own.get(name) != other.get(name)):
            raise InputError(
                f"the weights belong to another model: {odd[0]} differs", "use the recipe that they were trained with"
            )
        for name, master in self.masters.items():
            master.copy_(weights[name])
        self.copy_to_model()

    def state(self) -> dict[str, Tensor]:
        """Optimizer state: `GROUP_NUMBER/PARAMETER/ENTRY` -> tensor."""
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


def _part(group: ParamGroup, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if group.rule == "muon":
        decay = group.weight_decay
        return torch.optim.Muon(parameters, lr=group.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return torch.optim.AdamW(parameters, lr=group.lr, betas=group.betas, weight_decay=group.weight_decay, fused=True)
