"""A start for the retriever's projectors: whitened inputs without their mean direction, so that no score saturates."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from remanence.lm import seam
from remanence.lm.rows import norm_of
from remanence.train.documents import draw_document, gather
from remanence.train.latent_run import LatentRun
from remanence.train.latent_tasks import write
from remanence.train.recipes.nano_mplus import LatentPhase

RIDGE = 0.02
"""Of the mean variance, added to all: directions that hardly vary are not blown up."""


@torch.no_grad()
def whiten_projectors(run: LatentRun, num_documents: int) -> None:
    """Sets the first maps of all projectors from what their inputs are like, the second ones at random.

    Normed hidden states share one large direction. Under maps drawn at random every q·k is then large and alike, all
    sigmoids are 1, and nothing is learned (docs/mplus.md).
    """
    row_NLC, asked_NLC = _inputs(run, num_documents)
    modules, generator = run.method.modules(run.lm), torch.Generator().manual_seed(run.recipe.seed)
    for layer in range(run.lm.dims.num_layers):
        for projectors, input_NC in (
            (modules.query, asked_NLC[:, layer]),
            (modules.key, row_NLC[:, layer]),
            (modules.encoder_query, row_NLC[:, layer]),
        ):
            wide, narrow = projectors[layer][0], projectors[layer][2]  # pyright: ignore[reportIndexIssue]
            mix = torch.randn(wide.weight.shape, generator=generator) / wide.weight.shape[1] ** 0.5
            wide.weight.copy_(mix @ whitening(input_NC))
            narrow.weight.copy_(torch.randn(narrow.weight.shape, generator=generator) / narrow.weight.shape[1] ** 0.5)


def whitening(input_NC: Tensor) -> Tensor:
    """map_CC: after it all directions have like variance, and the direction of the mean is gone."""
    moment_CC = input_NC.T @ input_NC / len(input_NC)
    value_C, basis_CC = torch.linalg.eigh(moment_CC)
    whiten_CC = basis_CC @ torch.diag((value_C + RIDGE * value_C.mean()).rsqrt()) @ basis_CC.T
    mean_C = torch.nn.functional.normalize((input_NC @ whiten_CC).mean(0), dim=0)
    return (torch.eye(len(mean_C)) - torch.outer(mean_C, mean_C)) @ whiten_CC


def _inputs(run: LatentRun, num_documents: int) -> tuple[Tensor, Tensor]:
    """Of a sample of documents: normed rows, and what enters attention at the tokens that ask."""
    rng, phase = Random(f"{run.recipe.seed} whitening"), LatentPhase(1, chunks=(1, 1), full=0.0, repeat=0.0, books=0.0)
    documents = [draw_document(rng, phase, run.recipe, run.corpora, run.encoder, 1) for _ in range(num_documents)]
    documents = [document for document in documents if document.sentences]
    sentences, L = gather(rng, documents, num_documents, run.encoder.pad), run.lm.dims.num_layers
    watch = seam.Watch(frozenset(range(L)))
    with torch.autocast(run.lm.device.type, torch.bfloat16):
        row_DLRC = write(run, documents)
        ids_BT = sentences.batch.ids_BT
        offset = 1 + run.method.config.long_slots + run.method.config.pool_rows
        positions_BT = offset + torch.arange(ids_BT.shape[1])[None]
        run.lm.model.model(ids_BT, position_ids=positions_BT, use_cache=False, role="read", watch=watch)
    rows = [norm_of(run.lm.model, i)(row_DLRC[:, i].flatten(0, 1)).float() for i in range(L)]
    asked = [watch.hidden[i][sentences.asked_QT].float() for i in range(L)]
    return torch.stack(rows, dim=1), torch.stack(asked, dim=1)
