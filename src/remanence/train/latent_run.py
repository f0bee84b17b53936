"""A run of M+: what is trained, and the pool, the rows and the documents that live on from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from remanence.lm.lm import LM
from remanence.lm.lora import role_parameters
from remanence.methods.mplus.method import MPlus
from remanence.methods.mplus.pool import Pool
from remanence.methods.mplus.pool_file import parts_of, pool_of
from remanence.train.corpora import Corpora
from remanence.train.documents import MPlusDocument, Sentence
from remanence.train.loop import Run
from remanence.train.optimizer import Group
from remanence.train.recipes.nano_mplus import MPlusRecipe
from remanence.train.rows import Encoder


@dataclass(kw_only=True)
class MPlusRun(Run):
    """A run: the model with its roles, and the pool that it writes to.

    `cached`: documents of earlier steps, with the number of each one's first write; `past`: rows of earlier writes,
    and which of them are text.
    """

    recipe: MPlusRecipe
    lm: LM
    method: MPlus
    encoder: Encoder
    corpora: Corpora
    pool: Pool
    cached: list[tuple[list[MPlusDocument], list[int]]] = field(default_factory=list)
    past: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def trained_parameters(lm: LM, method: MPlus) -> dict[str, nn.Parameter]:
    """By name: adapters of both roles, and the method's own modules."""
    roles = {id(p) for p in role_parameters(lm.model)}
    found = {f"model.{name}": p for name, p in lm.model.named_parameters() if id(p) in roles}
    return found | {f"latent.{name}": p for name, p in method.modules(lm).named_parameters()}


def groups(trained: dict[str, nn.Parameter], recipe: MPlusRecipe) -> list[Group]:
    """Everything else, and the projectors, which have a learning rate of their own (authors' code)."""
    kinds = (".query.", ".key.", ".encoder_query.")
    projectors = tuple(name for name in trained if any(kind in name for kind in kinds))
    rest = tuple(name for name in trained if name not in projectors)
    betas = (0.9, recipe.beta2)
    return [
        Group("adamw", rest, recipe.lr, 0.01, betas),
        Group("adamw", projectors, recipe.projector_lr, 0.01, betas),
    ]


def state(run: MPlusRun) -> tuple[dict[str, Tensor], Any]:
    """The pool with its long-term memory, the rows and the documents that later steps ask for."""
    tensors, numbers = parts_of(run.pool)
    found = {f"pool/{name}": tensor for name, tensor in tensors.items()}
    for number, (row_LGKC, seen_GK) in enumerate(run.past):
        found |= {f"past/{number}/rows": row_LGKC, f"past/{number}/seen": seen_GK}
    cached = [[[asdict(document) for document in documents], when] for documents, when in run.cached]
    return found, {"pool": numbers, "past": len(run.past), "cached": cached}


def restore(run: MPlusRun, tensors: Mapping[str, Tensor], values: Any) -> None:
    lead = "pool/"
    parts = {name.removeprefix(lead): tensor for name, tensor in tensors.items() if name.startswith(lead)}
    run.pool = pool_of(parts, values["pool"], run.pool)
    run.past = [(tensors[f"past/{n}/rows"], tensors[f"past/{n}/seen"]) for n in range(values["past"])]
    run.cached = [([_document(told) for told in documents], when) for documents, when in values["cached"]]


def _document(told: dict[str, Any]) -> MPlusDocument:
    return MPlusDocument(told["chunks"], [Sentence(**sentence) for sentence in told["sentences"]])
