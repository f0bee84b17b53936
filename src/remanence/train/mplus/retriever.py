"""Trains other retrievers (projectors only) for a trained model, with different losses, for comparison."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from remanence.lm import attention
from remanence.lm.hidden_states import norm_of
from remanence.methods.mplus.retriever import balanced_loss, contrastive_loss, scores, write_scores
from remanence.train.core.model import cast
from remanence.train.examples.documents import MPlusDocument, draw_document, gather_sentences
from remanence.train.mplus.projector_init import match_words
from remanence.train.mplus.run import MPlusRun
from remanence.train.mplus.steps import valid_rows, write_documents
from remanence.train.recipes.nano_mplus import MPlusPhase

Loss = Literal["start", "balanced", "contrastive"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
DOCUMENTS, STEPS = 32, 150


def train_retriever(run: MPlusRun, loss: Loss, num_steps: int, file: Path) -> None:
    """Trains projectors of queries and keys and writes them to `file`. The model and its adapters do not change.

    "start": the initial weights, without a step. "balanced": the paper's loss over scores of single rows.
    "contrastive": InfoNCE over whole writes, as for nano-mplus.
    """
    match_words(run, run.recipe.projector_documents)
    modules = run.method.modules(run.lm)
    trained = [*modules.query.parameters(), *modules.key.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=run.recipe.projector_lr, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(0 if loss == "start" else num_steps):
        value = _step_loss(run, loss, Random(f"{run.recipe.seed} retriever {step}"))
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 25 == 24:
            run.log({"step": step + 1, "stage": f"retriever {loss}", "loss": round(value.item(), 4)})
    tensors = {
        n: t.detach().bfloat16().contiguous() for n, t in modules.state_dict().items() if n[:4] in ("quer", "key.")
    }
    save_file(tensors, file, metadata={"format": "pt"})


def _step_loss(run: MPlusRun, loss: Loss, rng: Random) -> Tensor:
    phase = MPlusPhase(1, full=0.0, repeat=0.0, books=0.0, squad=0.15)
    documents: list[MPlusDocument] = []
    while len(documents) < DOCUMENTS:
        document = draw_document(rng, phase, run.recipe, run.corpora, run.encoder, 1)
        if document.sentences and document.sentences[0].place is not None:
            documents.append(document)
    sentences = gather_sentences(rng, documents, DOCUMENTS, run.encoder.pad)
    config, L = run.method.config, run.lm.dims.num_layers
    ids_BT, watch = sentences.batch.ids_BT, attention.AttentionCapture(frozenset(range(L)))
    positions_BT = 1 + config.long_slots + config.pool_rows + torch.arange(ids_BT.shape[1])[None]
    with torch.no_grad(), cast(run.lm.device, run.recipe):
        row_DLRC = write_documents(run, documents)
        run.lm.model.model(ids_BT, position_ids=positions_BT, use_cache=False, role="read", watch=watch)
    seen_DR, modules = valid_rows(documents, config.write_rows), run.method.modules(run.lm)
    own_QD = sentences.of_Q[:, None] == torch.arange(len(documents))
    losses = []
    for layer in range(L):
        normed_DRC = norm_of(run.lm.model, layer)(row_DLRC[:, layer]).float()
        query_QTE, key_DRE = modules.query[layer](watch.hidden[layer].float()), modules.key[layer](normed_DRC)
        if loss == "balanced":
            score_QM = scores(query_QTE, key_DRE.flatten(0, 1), sentences.asked_QT)
            own_QM = own_QD.repeat_interleave(config.write_rows, 1)
            seen_M = seen_DR.flatten()
            losses.append(balanced_loss(score_QM[:, seen_M], own_QM[:, seen_M]))
        else:
            score_QD = write_scores(query_QTE, key_DRE, seen_DR, sentences.asked_QT)
            losses.append(contrastive_loss(score_QD, own_QD, 1 / run.recipe.sharpness))
    return torch.stack(losses).mean()
