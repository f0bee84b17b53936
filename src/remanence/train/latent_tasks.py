"""The tasks of one training step of M+ and their losses (M+ §6.1)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from remanence.latent.retriever import balanced_loss, contrastive_loss
from remanence.train.documents import LatentDocument, Sentences, draw_document, gather
from remanence.train.latent_run import LatentRun
from remanence.train.live import LivePrefix
from remanence.train.losses import Losses, answer_losses, exact_answers, targets
from remanence.train.model import logits_at
from remanence.train.recipes.nano_mplus import LatentPhase


def step_loss(run: LatentRun, phase: LatentPhase, rng: Random) -> Tensor:
    """One task by the phase's chances; what was written goes into the pool afterwards, without gradient."""
    num_chunks = rng.randint(*phase.chunks)
    if run.cached and rng.random() < phase.revisit:
        return _revisit(run, rng)
    documents: list[LatentDocument] = []
    while len(documents) < phase.documents:
        document = draw_document(rng, phase, run.recipe, run.corpora, run.encoder, num_chunks)
        if document.sentences and len(document.chunks) == num_chunks and all(document.chunks):
            documents.append(document)
    sentences = gather(rng, documents, run.recipe.max_questions, run.encoder.pad)
    if rng.random() < phase.full:
        return _plain(run, rng, documents)
    with torch.autocast(run.lm.device.type, torch.bfloat16):
        row_DLRC = write(run, documents)
    whole, long = rng.random() < phase.whole_pool, rng.random() < phase.long
    loss = _read(run, rng, documents, sentences, row_DLRC, "alone" if not whole else "long" if long else "pool")
    _keep(run, documents, row_DLRC.detach())
    return loss


def write(run: LatentRun, documents: list[LatentDocument]) -> Tensor:
    """row_DLRC of all chunks, in order; each chunk is given the rows of the one before, the first the pool's last."""
    K = run.method.config.write_rows
    last_DLKC = run.pool.row_LNC[:, -K:].expand(len(documents), -1, -1, -1)
    parts = []
    for number in range(len(documents[0].chunks)):
        last_DLKC = run.method.encode(run.lm, last_DLKC, [document.chunks[number] for document in documents])
        parts.append(last_DLKC)
    return torch.cat(parts, dim=2)


def is_text(documents: list[LatentDocument], K: int) -> Tensor:
    """place_DR: the chunk whose text a row is, -1 for rows that a short chunk took over from the pool."""
    places = [
        [number if at >= K - len(chunk) else -1 for number, chunk in enumerate(document.chunks) for at in range(K)]
        for document in documents
    ]
    return torch.tensor(places)


def _read(
    run: LatentRun,
    rng: Random,
    documents: list[LatentDocument],
    sentences: Sentences,
    row_DLRC: Tensor,
    where: str,
) -> Tensor:
    config, recipe = run.method.config, run.recipe
    D, L, R, C = row_DLRC.shape
    old_LSC, time_S = _sample(run, rng)
    own_LMC = row_DLRC.transpose(0, 1).reshape(L, D * R, C)
    place_DR = is_text(documents, config.write_rows)
    own_QM = sentences.of_Q[:, None] == torch.arange(D).repeat_interleave(R)
    place_QM = place_DR.flatten().expand(len(own_QM), -1)
    wanted_QM = own_QM & (place_QM == sentences.place_Q[:, None]) & (place_QM >= 0)
    pool_LNC = run.pool.row_LNC
    if where == "pool":
        kept = sorted(rng.sample(range(config.pool_rows), config.pool_rows - R))
        pool_LNC = pool_LNC[:, kept]
    forced_QM = None
    if where == "long":
        forced_Q = torch.tensor([rng.random() < 0.4 for _ in range(len(own_QM))])
        forced_QM = functional.pad((wanted_QM & forced_Q[:, None]).float(), (0, old_LSC.shape[1]))
    begin_D = torch.tensor([rng.random() for _ in range(D)]) * max(1.0, float(time_S.max() if len(time_S) else 1.0))
    time_M = torch.cat([(begin_D[:, None] + torch.arange(R) * 1e-3).flatten(), time_S])
    prefix = LivePrefix(
        run.lm,
        run.method,
        pool_LNC[:, :0] if where == "alone" else pool_LNC,
        None if where == "long" else row_DLRC,
        sentences.of_Q,
        sentences.asked_QT,
        torch.cat([own_LMC, old_LSC.to(own_LMC)], dim=1),
        time_M,
        recipe.read_long_rows if where == "long" else 0,
        forced_QM,
        recipe.detached,
    )
    losses, _, whole = read_sentences(run, prefix, sentences)
    reader = _retriever_loss(run, prefix, own_QM, wanted_QM)
    run.count(**{f"{where}_answer": losses.answer.item(), f"{where}_exact": whole, "retriever": reader.item()})
    return losses.total + recipe.retriever_weight * reader + 0.1 * _writer_loss(run, row_DLRC)


def read_sentences(run: LatentRun, prefix: LivePrefix, sentences: Sentences) -> tuple[Losses, float, float]:
    batch, model = sentences.batch, run.lm.model
    index_N = targets(batch.kind_BT, 4, run.step)
    positions_BT = prefix.offset_tokens + torch.arange(batch.ids_BT.shape[1])[None]
    with torch.autocast(run.lm.device.type, torch.bfloat16):
        body: Any = model.model
        hidden_BTC = body(
            batch.ids_BT, position_ids=positions_BT, use_cache=False, memory=prefix, role="read"
        ).last_hidden_state
        logits_NV = logits_at(model, hidden_BTC.flatten(0, 1)[index_N])
    losses = answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, run.recipe.text_weight)
    has_answer = bool((batch.kind_BT == 2).any())
    token, whole = exact_answers(logits_NV, index_N, batch.ids_BT, batch.kind_BT) if has_answer else (0.0, 0.0)
    return losses, token, whole


def _retriever_loss(run: LatentRun, prefix: LivePrefix, own_QM: Tensor, wanted_QM: Tensor) -> Tensor:
    """Mean over layers; other rows of the same document count as negatives only where they are of another chunk."""
    if not prefix.odds or not wanted_QM.any():
        return run.method.modules(run.lm).bos_LC.sum() * 0.0
    others = next(iter(prefix.odds.values())).shape[1] - wanted_QM.shape[1]
    wanted_QM = functional.pad(wanted_QM, (0, others))
    losses = []
    for odds_QM in prefix.odds.values():
        asks_Q = wanted_QM.any(1)
        if run.recipe.retriever in ("contrastive", "both"):
            losses.append(contrastive_loss(odds_QM[asks_Q], wanted_QM[asks_Q]))
        if run.recipe.retriever in ("balanced", "both"):
            losses.append(balanced_loss(odds_QM[asks_Q].sigmoid(), wanted_QM[asks_Q]))
    with torch.no_grad():
        k = run.method.config.long_slots
        found = [
            score.topk(min(k, score.shape[1]), dim=1).indices for score in (s.detach() for s in prefix.odds.values())
        ]
        hit = [(wanted_QM.gather(1, index).sum(1) / wanted_QM.sum(1).clamp(min=1))[asks_Q].mean() for index in found]
        run.count(found=float(torch.stack(hit).mean()), found_worst=float(torch.stack(hit).min()))
    return torch.stack(losses).mean()


def _writer_loss(run: LatentRun, row_DLRC: Tensor) -> Tensor:
    """The writer's retriever (M+ eq. 4): rows of the same document against the pool's, projectors alone."""
    R = row_DLRC.shape[2]
    rows = torch.cat([run.pool.row_LNC[None].expand(1, -1, -1, -1), row_DLRC[:1].detach().to(run.pool.row_LNC)], dim=2)
    with torch.autocast(run.lm.device.type, torch.bfloat16):
        score_BLN = run.method.writer_scores(run.lm, rows)
    is_own = torch.zeros_like(score_BLN, dtype=torch.bool)
    is_own[:, :, -R:] = True
    return balanced_loss(score_BLN.float(), is_own)


def _sample(run: LatentRun, rng: Random) -> tuple[Tensor, Tensor]:
    """Rows of long-term memory (the same places in every layer) and when they were born, from 0."""
    long, L = run.pool.long, run.lm.dims.num_layers
    total = long.blocks.num_rows
    index_S = torch.tensor(sorted(rng.sample(range(total), min(total, run.recipe.sample_rows))), dtype=torch.long)
    if not len(index_S):
        return run.pool.row_LNC[:, :0], torch.empty(0)
    rows = torch.stack([long.blocks.rows(layer, index_S) for layer in range(L)])
    born_S = long.blocks.born(0)[index_S].float()
    return rows, born_S - born_S.min()


def _keep(run: LatentRun, documents: list[LatentDocument], row_DLRC: Tensor) -> None:
    """Every chunk's rows enter the pool one after the other, with what drops out going to long-term memory."""
    K, when = run.method.config.write_rows, []
    for d in range(len(documents)):
        first = run.pool.clock + 1
        for part_LKC in row_DLRC[d].float().split(K, dim=1):
            with torch.no_grad(), torch.autocast(run.lm.device.type, torch.bfloat16):
                run.pool = run.method.take(run.lm, run.pool, part_LKC)
        when.append((first, run.pool.clock))
    run.cached = [*run.cached[-5:], (documents, when)]


def _plain(run: LatentRun, rng: Random, documents: list[LatentDocument]) -> Tensor:
    """Documents as running text that reads the pool as it is; nothing is written (M+ §6.1, 1)."""
    joined = [
        LatentDocument([], [replace(s, ids=[*_flat(d), *s.ids], kinds=[*[1] * len(_flat(d)), *s.kinds])])
        for d in documents[:8]
        for s in d.sentences[:1]
    ]
    sentences = gather(rng, joined, 8, run.encoder.pad)
    prefix = _pool_alone(run, sentences)
    losses, _, whole = read_sentences(run, prefix, sentences)
    run.count(full_answer=losses.answer.item(), full_exact=whole)
    return losses.total


def _flat(document: LatentDocument) -> list[int]:
    """Of the chunks what leaves room for the sentence."""
    return [token for chunk in document.chunks for token in chunk][-40:]


def _pool_alone(run: LatentRun, sentences: Sentences) -> LivePrefix:
    none = run.pool.row_LNC[:, :0]
    return LivePrefix(
        run.lm, run.method, run.pool.row_LNC, None, sentences.of_Q, sentences.asked_QT, none, torch.empty(0), 0
    )


def _revisit(run: LatentRun, rng: Random) -> Tensor:
    """Questions about documents of an earlier step, whose rows are in the pool and in long-term memory by now."""
    documents, when = rng.choice(run.cached)
    sentences = gather(rng, documents, run.recipe.max_questions, run.encoder.pad)
    long, L = run.pool.long, run.lm.dims.num_layers
    born_M = long.blocks.born_LM()
    place_M = torch.arange(long.blocks.num_rows)
    rows = torch.stack([long.blocks.rows(layer, place_M) for layer in range(L)]).to(run.pool.row_LNC)
    prefix = RevisitPrefix(
        run.lm,
        run.method,
        run.pool.row_LNC,
        None,
        sentences.of_Q,
        sentences.asked_QT,
        rows,
        torch.empty(0),
        run.recipe.read_long_rows,
        None,
        run.recipe.detached,
        born_LM=born_M,
    )
    losses, _, whole = read_sentences(run, prefix, sentences)
    run.count(revisit_answer=losses.answer.item(), revisit_exact=whole)
    wanted = [_wanted(documents, when, sentences, born_M[layer], run.method.config.write_rows) for layer in range(L)]
    parts = [contrastive_loss(prefix.odds[layer], wanted[layer]) for layer in range(L) if wanted[layer].any()]
    if not parts:
        return losses.total
    hits = [
        (wanted[i].gather(1, prefix.chosen[i]).sum(1) / wanted[i].sum(1).clamp(min=1))[wanted[i].any(1)].mean()
        for i in range(L)
        if wanted[i].any()
    ]
    run.count(revisit_found=float(torch.stack(hits).mean()))
    return losses.total + run.recipe.retriever_weight * torch.stack(parts).mean()


def _wanted(
    documents: list[LatentDocument], when: list[tuple[int, int]], sentences: Sentences, born_M: Tensor, K: int
) -> Tensor:
    """wanted_QM: rows that were born of the text of the chunk that a sentence needs."""
    rows = []
    for d, place in zip(sentences.of_Q.tolist(), sentences.place_Q.tolist(), strict=True):
        if place < 0:
            rows.append(torch.zeros_like(born_M, dtype=torch.bool))
            continue
        end = when[d][0] + (place + 1) * K
        rows.append((born_M >= end - min(K, len(documents[d].chunks[place]))) & (born_M < end))
    return torch.stack(rows)


@dataclass
class RevisitPrefix(LivePrefix):
    """Rows of the real long-term memory: each layer has its own times."""

    born_LM: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def __call__(self, layer: int, hidden_BTC: Tensor) -> Any:
        self.time_M = self.born_LM[layer].float()
        return super().__call__(layer, hidden_BTC)
