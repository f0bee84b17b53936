"""A run of M+: what is trained, the pool that lives on from step to step, and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from remanence.latent.pool import Pool
from remanence.lm.lm import LM
from remanence.lm.lora import role_parameters
from remanence.methods.mplus import MPlus
from remanence.train import checkpoint
from remanence.train.corpora import Corpora
from remanence.train.documents import LatentDocument
from remanence.train.recipes.nano_mplus import LatentRecipe
from remanence.train.rows import Encoder


@dataclass
class LatentRun:
    """A run: the model with its roles, what is trained, and the pool.

    `cached`: documents of earlier steps, with the number of each one's first write; `past`: rows of earlier writes,
    and which of them are text.
    """

    recipe: LatentRecipe
    lm: LM
    method: MPlus
    encoder: Encoder
    corpora: Corpora
    folder: Path
    pool: Pool
    optimizer: torch.optim.AdamW
    trained: dict[str, nn.Parameter]
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    cached: list[tuple[list[LatentDocument], list[int]]] = field(default_factory=list)
    past: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def log(self, record: dict[str, Any]) -> None:
        checkpoint.log(self.folder, record)

    def count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            total, times = self.sums.get(name, 0.0), self.sums.get(f"#{name}", 0.0)
            self.sums[name], self.sums[f"#{name}"] = total + float(amount), times + 1


def trained_parameters(lm: LM, method: MPlus) -> dict[str, nn.Parameter]:
    """By name: adapters of both roles, and the method's own modules."""
    roles = {id(p) for p in role_parameters(lm.model)}
    found = {f"model.{name}": p for name, p in lm.model.named_parameters() if id(p) in roles}
    return found | {f"latent.{name}": p for name, p in method.modules(lm).named_parameters()}


def by_rate(trained: dict[str, nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Everything else, and the projectors, which have a learning rate of their own (authors' code)."""
    rest: list[nn.Parameter] = []
    projectors: list[nn.Parameter] = []
    for name, parameter in trained.items():
        is_projector = any(f".{kind}." in name for kind in ("query", "key", "encoder_query"))
        (projectors if is_projector else rest).append(parameter)
    return rest, projectors


def save(run: LatentRun) -> None:
    """Weights, optimizer, and the pool's rows (long-term memory fills again within a few steps)."""
    weights = {name: p.detach() for name, p in run.trained.items()} | {"pool_LNC": run.pool.row_LNC}
    state = {
        f"{name}/{entry}": tensor
        for name, p in run.trained.items()
        for entry, tensor in run.optimizer.state.get(p, {}).items()
    }
    checkpoint.save(
        run.folder / "latent", checkpoint.Checkpoint(weights, state, {"step": run.step, "seconds": run.seconds})
    )


@torch.no_grad()
def resume(run: LatentRun) -> None:
    found = checkpoint.load(run.folder / "latent")
    for name, parameter in run.trained.items():
        parameter.copy_(found.weights[name])
        lead = f"{name}/"
        entries = {key.removeprefix(lead): t.clone() for key, t in found.optimizer.items() if key.startswith(lead)}
        if entries:
            run.optimizer.state[parameter] = entries
    run.pool = replace(run.pool, row_LNC=found.weights["pool_LNC"])
    run.step, run.seconds = found.progress["step"], found.progress["seconds"]
