"""Muon for the matrices of the layers, AdamW for embeddings and norms, behind one object."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from remanence.train.recipes.nano import Recipe


class Optimizer:
    """`scale` multiplies both learning rates; parameters are known by name, so that states can be saved."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        named = dict(model.named_parameters())
        matrices = {name: p for name, p in named.items() if p.ndim == 2 and "embed" not in name}
        others = {name: p for name, p in named.items() if name not in matrices}
        self.names = [list(matrices), list(others)]
        self.rates = [recipe.matrix_lr, recipe.other_lr]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices.values(), lr=recipe.matrix_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others.values(), lr=recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def step(self, scale: float) -> None:
        for part, rate in zip(self.parts, self.rates, strict=True):
            part.param_groups[0]["lr"] = rate * scale
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """`part/parameter/entry` -> tensor."""
        return dict(self._entries())

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        for i, part in enumerate(self.parts):
            for name, parameter in zip(self.names[i], part.param_groups[0]["params"], strict=True):
                for entry, tensor in part.state[parameter].items():
                    yield f"{i}/{name}/{entry}", tensor

    def load(self, state: dict[str, Tensor]) -> None:
        for i, part in enumerate(self.parts):
            for name, parameter in zip(self.names[i], part.param_groups[0]["params"], strict=True):
                lead = f"{i}/{name}/"
                part.state[parameter] = {
                    key[len(lead) :]: tensor.clone()
                    if key.endswith("/step")
                    else tensor.to(parameter.device, copy=True)
                    for key, tensor in state.items()
                    if key.startswith(lead)
                }
