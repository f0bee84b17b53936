"""The state of an M+ run: what is trained, and what one step leaves for the next (pool, earlier rows, documents)."""

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
from remanence.train.core.loop import Run
from remanence.train.core.optimizer import ParamGroup
from remanence.train.examples.corpora import Corpora
from remanence.train.examples.documents import MPlusDocument, Sentence
from remanence.train.examples.mixture import Encoder
from remanence.train.recipes.nano_mplus import MPlusRecipe


@dataclass(kw_only=True)
class MPlusRun(Run):
    """A run of M+: the model with its adapters, and the pool that it writes to.

    `cached`: (documents of an earlier step, the number of the first write of each). `past`: (row_LGKC, seen_GK) of
    earlier writes, where `seen_GK` (bool) marks the rows that hold text.
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
    """The trained parameters by name: adapters of both roles, and the modules of the method."""
    roles = {id(p) for p in role_parameters(lm.model)}
    adapters = {f"model.{name}": p for name, p in lm.model.named_parameters() if id(p) in roles}
    return adapters | {f"latent.{name}": p for name, p in method.modules(lm).named_parameters()}


def param_groups(trained: dict[str, nn.Parameter], recipe: MPlusRecipe) -> list[ParamGroup]:
    """Two groups: the projectors, which have their own learning rate (authors' code), and the rest."""
    kinds = (".query.", ".key.", ".encoder_query.")
    projectors = tuple(name for name in trained if any(kind in name for kind in kinds))
    rest = tuple(name for name in trained if name not in projectors)
    betas = (0.9, recipe.beta2)
    return [
        ParamGroup("adamw", rest, recipe.lr, 0.01, betas),
        ParamGroup("adamw", projectors, recipe.projector_lr, 0.01, betas),
    ]


def state(run: MPlusRun) -> tuple[dict[str, Tensor], Any]:
    """(tensors, JSON values) that the next step needs. The names are part of the checkpoint format."""
    tensors, numbers = parts_of(run.pool)
    named = {f"pool/{name}": tensor for name, tensor in tensors.items()}
    for number, (row_LGKC, seen_GK) in enumerate(run.past):
        named |= {f"past/{number}/rows": row_LGKC, f"past/{number}/seen": seen_GK}
    cached = [[[asdict(document) for document in documents], when] for documents, when in run.cached]
    return named, {"pool": numbers, "past": len(run.past), "cached": cached}


def restore(run: MPlusRun, tensors: Mapping[str, Tensor], values: Any) -> None:
    """Sets the state of a checkpoint."""
    lead = "pool/"
    parts = {name.removeprefix(lead): tensor for name, tensor in tensors.items() if name.startswith(lead)}
    run.pool = pool_of(parts, values["pool"], run.pool)
    run.past = [(tensors[f"past/{n}/rows"], tensors[f"past/{n}/seen"]) for n in range(values["past"])]
    run.cached = [([_document(record) for record in documents], when) for documents, when in values["cached"]]


def _document(record: dict[str, Any]) -> MPlusDocument:
    return MPlusDocument(record["chunks"], [Sentence(**sentence) for sentence in record["sentences"]])
