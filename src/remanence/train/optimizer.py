"""Muon for the matrices of the layers, AdamW for embeddings and norms, on float32 copies of a bfloat16 model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from remanence.train.recipes.nano import Recipe


class Optimizer:
    """`scale` multiplies both learning rates; parameters are known by name, so that states can be saved.

    `masters` are what is trained: float32, copied into the model's own parameters after each step.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model = dict(model.named_parameters())
        self.masters = {name: p.detach().float().clone() for name, p in self.model.items()}
        matrices = [name for name, p in self.model.items() if p.ndim == 2 and "embed" not in name]
        self.names = [matrices, [name for name in self.model if name not in matrices]]
        self.rates = [recipe.matrix_lr, recipe.other_lr]
        self.clip_norm = recipe.clip_norm
        muon, adamw = ([self.masters[name] for name in names] for names in self.names)
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(muon, lr=recipe.matrix_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(adamw, lr=recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]

    def step(self, scale: float) -> None:
        """Clips, steps, copies into the model, and drops the gradients."""
        for name, p in self.model.items():
            self.masters[name].grad = None if p.grad is None else p.grad.float()
            p.grad = None
        clip_grad_norm_(self.masters.values(), self.clip_norm)
        for part, rate in zip(self.parts, self.rates, strict=True):
            part.param_groups[0]["lr"] = rate * scale
            part.step()
        self.copy_to_model()

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for name, p in self.model.items():
            p.copy_(self.masters[name])

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
