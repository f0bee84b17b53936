"""The training step of M+: four kinds of tasks, and their losses."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from remanence.data.facts import distractor_passages
from remanence.lm import attention
from remanence.methods.mplus.retriever import balanced_loss, contrastive_loss
from remanence.train.core.losses import TEXT, Losses, answer_losses, exact_answers, targets
from remanence.train.core.model import cast, logits_at
from remanence.train.examples.documents import MPlusDocument, Sentence, Sentences, draw_document, gather_sentences
from remanence.train.examples.streams import draw_streams, last_chunk_only, surviving_rows
from remanence.train.mplus.auxiliary_losses import find_row_targets, row_attention_loss
from remanence.train.mplus.run import MPlusRun
from remanence.train.mplus.trainable_prefix import TrainablePrefix, Writes
from remanence.train.recipes.nano_mplus import MPlusPhase

REMEMBERED_WRITES = 96
"""The newest writes of long-term memory that a "revisit" step reads."""


def step_loss(run: MPlusRun, phase: MPlusPhase, rng: Random) -> tuple[Tensor, int]:
    """(scalar loss, number of tokens) of one task, drawn by the phase's chances.

    What is written goes into the pool, without gradient. `revisit` is drawn first; `full` has its chance among the
    other steps. One pool takes the documents of the step one after the other (the authors have one document and one
    pool on each of eight GPUs).
    """
    num_chunks = rng.randint(*phase.chunks)
    if run.cached and rng.random() < phase.revisit:
        return _revisit(run, rng)
    if rng.random() < phase.full:
        return _read_unrelated(run, rng)
    documents = draw_streams(rng, phase, run.recipe, run.corpora, run.encoder, num_chunks)
    while len(documents) < phase.documents:
        document = draw_document(rng, phase, run.recipe, run.corpora, run.encoder, num_chunks)
        if document.sentences and len(document.chunks) == num_chunks and all(document.chunks):
            documents.append(document)
    sentences = _gathered(run, rng, documents)
    whole, long = rng.random() < phase.whole_pool, rng.random() < phase.long
    if phase.streams and not whole:
        documents = last_chunk_only(documents)
    needs_gradient = torch.is_grad_enabled() and (phase.pool_gradient or not whole)
    with cast(run.lm.device, run.recipe), torch.set_grad_enabled(needs_gradient):
        row_DLRC = write_documents(run, documents)
    loss = _read(run, rng, documents, sentences, row_DLRC, "alone" if not whole else "long" if long else "pool")
    if torch.isfinite(row_DLRC).all():  # otherwise the loss is not finite, and the run returns to a checkpoint
        _add_to_pool(run, documents, row_DLRC.detach())
    num_written = sum(len(chunk) for document in documents for chunk in document.chunks)
    return loss, num_written + sentences.batch.ids_BT.numel()


def _gathered(run: MPlusRun, rng: Random, documents: list[MPlusDocument]) -> Sentences:
    return gather_sentences(rng, documents, run.recipe.max_questions, run.encoder.pad, run.recipe.sentence_tokens)


def write_documents(run: MPlusRun, documents: list[MPlusDocument]) -> Tensor:
    """row_DLRC of all chunks, in order. A chunk reads the rows of the one before; the first, the pool's last rows."""
    K = run.method.config.write_rows
    last_DLKC = run.pool.row_LNC[:, -K:].expand(len(documents), -1, -1, -1)
    parts = []
    for number in range(len(documents[0].chunks)):
        chunks = [document.chunks[number] for document in documents]
        parts.append(run.method.encode(run.lm, last_DLKC, chunks))
        last_DLKC = torch.stack(
            [
                torch.cat([last[:, min(K, len(ids)) :], fresh[:, max(0, K - len(ids)) :]], dim=1)
                for last, fresh, ids in zip(last_DLKC, parts[-1], chunks, strict=True)
            ]
        )
    return torch.cat(parts, dim=2)


def valid_rows(documents: list[MPlusDocument], K: int) -> Tensor:
    """seen_DR (bool): False for the rows that a short chunk does not fill; K: rows per write."""
    return torch.tensor([[at >= K - len(chunk) for chunk in doc.chunks for at in range(K)] for doc in documents])


def _read(
    run: MPlusRun,
    rng: Random,
    documents: list[MPlusDocument],
    sentences: Sentences,
    row_DLRC: Tensor,
    where: str,
) -> Tensor:
    """The loss of sentences that are read with the rows of their documents.

    `where`: "alone", behind the "pool", or retrieved from writes ("long"): the step's own and `past_writes` of earlier
    steps, but not the long-term memory, which `_revisit` reads. The text's positions begin after a whole pool, also if
    rows are read alone. The retriever learns from sentences that ask for a certain write.
    """
    config, recipe = run.method.config, run.recipe
    seen_DR = valid_rows(documents, config.write_rows)
    writes, place_W = _with_past(run, rng, row_DLRC, seen_DR)
    chunks = row_DLRC.shape[2] // config.write_rows
    wanted_QG = torch.zeros(len(sentences.of_Q), writes.seen_LGK.shape[1], dtype=torch.bool)
    asks_Q = sentences.place_Q >= 0
    wanted_QG[asks_Q, place_W[sentences.of_Q * chunks + sentences.place_Q][asks_Q]] = True
    pool_LNC, own_DLRC, forced_QG = run.pool.row_LNC, row_DLRC, None
    if where == "pool":
        rows = surviving_rows(rng, chunks, config.write_rows, config.pool_rows)
        own_DLRC, seen_DR = own_DLRC[:, :, rows], seen_DR[:, rows]
        pool_LNC = pool_LNC[:, sorted(rng.sample(range(config.pool_rows), config.pool_rows - len(rows)))]
    if where == "long":
        forced_QG = wanted_QG & torch.tensor([rng.random() < 0.3 for _ in range(len(asks_Q))])[:, None]
    prefix = TrainablePrefix(
        run.lm,
        run.method,
        pool_LNC[:, :0] if where == "alone" else pool_LNC,
        None if where == "long" else own_DLRC,
        None if where == "long" else seen_DR,
        sentences.of_Q,
        sentences.asked_QT,
        writes,
        rng.choice(recipe.read_long_rows) if where == "long" else 0,
        forced_QG,
        recipe.detached,
    )
    is_whole = own_DLRC.shape == row_DLRC.shape  # otherwise rows are not at the columns that the targets assume
    watch = attention.AttentionCapture(frozenset(recipe.look_layers if is_whole else ()))
    losses, _, whole = read_sentences(run, prefix, sentences, watch)
    retrieval = _retriever_loss(run, prefix, wanted_QG[asks_Q], asks_Q)
    attention_loss, masses = row_attention_loss(
        watch.seen, prefix, find_row_targets(documents, sentences, config.write_rows), place_W
    )
    run.count(**{f"looks_{where}_{layer}": mass for layer, mass in masses.items()})
    run.count(**{f"{where}_answer": losses.answer.item(), f"{where}_exact": whole, "retriever": retrieval.item()})
    total = losses.total + recipe.retriever_weight * retrieval + recipe.look_weight * attention_loss
    return total + recipe.writer_weight * _writer_loss(run, own_DLRC) if recipe.writer_weight else total


def _with_past(run: MPlusRun, rng: Random, row_DLRC: Tensor, seen_DR: Tensor) -> tuple[Writes, Tensor]:
    """(the step's own writes among earlier ones, in random order; `place_W`: the places of the step's own).

    The order is random because a fact may be older than everything else.
    """
    K = run.method.config.write_rows
    own = Writes(
        row_DLRC.transpose(0, 1).unflatten(2, (-1, K)).flatten(1, 2), seen_DR.unflatten(1, (-1, K)).flatten(0, 1)
    )
    past = rng.sample(run.past, min(len(run.past), run.recipe.past_writes))
    L = len(own.row_LGKC)
    seen_GK = torch.cat([*(seen for _, seen in past), own.seen_LGK]) if past else own.seen_LGK
    rows = torch.cat([*(row for row, _ in past), own.row_LGKC.float()], dim=1) if past else own.row_LGKC
    fresh = zip(own.row_LGKC.detach().float().split(1, 1), own.seen_LGK.split(1), strict=True)
    run.past = [*run.past, *fresh][-4 * run.recipe.past_writes :] if run.recipe.past_writes else []
    order_G = torch.tensor(rng.sample(range(len(seen_GK)), len(seen_GK)))
    place_W = order_G.argsort()[len(seen_GK) - own.seen_LGK.shape[0] :]
    return Writes(rows[:, order_G], seen_GK[order_G].expand(L, -1, -1)), place_W


def read_sentences(
    run: MPlusRun, prefix: TrainablePrefix, sentences: Sentences, watch: attention.AttentionCapture | None = None
) -> tuple[Losses, float, float]:
    """(losses, share of exact answer tokens, share of exact answers). Every fourth token of text has a loss."""
    batch, model = sentences.batch, run.lm.model
    index_N = targets(batch.kind_BT, 4, run.number)
    positions_BT = prefix.offset_tokens + torch.arange(batch.ids_BT.shape[1])[None]
    with cast(run.lm.device, run.recipe):
        body: Any = model.model
        hidden_BTC = body(
            batch.ids_BT, position_ids=positions_BT, use_cache=False, memory=prefix, role="read", watch=watch
        ).last_hidden_state
        logits_NV = logits_at(model, hidden_BTC.flatten(0, 1)[index_N])
    losses = answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, run.recipe.text_weight)
    has_answer = bool((batch.kind_BT == 2).any())
    token, whole = exact_answers(logits_NV, index_N, batch.ids_BT, batch.kind_BT) if has_answer else (0.0, 0.0)
    return losses, token, whole


def _retriever_loss(run: MPlusRun, prefix: TrainablePrefix, wanted_QG: Tensor, asks_Q: Tensor) -> Tensor:
    """The retriever's loss, mean over layers, of questions that ask for a write. Counts the shares that find it."""
    if not prefix.score or not asks_Q.any():
        return run.method.modules(run.lm).bos_LC.sum() * 0.0
    losses, top4, top1 = [], [], []
    for score_QG in prefix.score.values():
        score_QG = score_QG[asks_Q]
        if run.recipe.retriever in ("contrastive", "both"):
            losses.append(contrastive_loss(score_QG, wanted_QG, 1 / run.recipe.sharpness))
        if run.recipe.retriever in ("balanced", "both"):
            losses.append(balanced_loss(score_QG, wanted_QG))
        top_QN = score_QG.detach().topk(min(4, score_QG.shape[1]), dim=1).indices
        top4.append(wanted_QG.gather(1, top_QN).any(1).float().mean())
        top1.append(wanted_QG.gather(1, top_QN[:, :1]).any(1).float().mean())
    run.count(found=float(torch.stack(top4).mean()), found_worst=float(torch.stack(top4).min()))
    run.count(found_first=float(torch.stack(top1).mean()))
    return torch.stack(losses).mean()


def _writer_loss(run: MPlusRun, row_DLRC: Tensor) -> Tensor:
    """The loss of the writer's retriever (authors' code): rows of one document against the pool's; projectors only."""
    R = row_DLRC.shape[2]
    rows = torch.cat([run.pool.row_LNC[None].expand(1, -1, -1, -1), row_DLRC[:1].detach().to(run.pool.row_LNC)], dim=2)
    with cast(run.lm.device, run.recipe):
        score_BLN = run.method.writer_scores(run.lm, rows)
    is_own = torch.zeros_like(score_BLN, dtype=torch.bool)
    is_own[:, :, -R:] = True
    return balanced_loss(score_BLN.float(), is_own)


def _add_to_pool(run: MPlusRun, documents: list[MPlusDocument], row_DLRC: Tensor) -> None:
    """Adds the rows of all chunks to the pool, in order. Rows that drop out of it go to long-term memory."""
    K, when = run.method.config.write_rows, []
    for document, row_LRC in zip(documents, row_DLRC, strict=True):
        first = run.pool.clock // K
        for ids, part_LKC in zip(document.chunks, row_LRC.float().split(K, dim=1), strict=True):
            with torch.no_grad(), cast(run.lm.device, run.recipe):
                run.pool = run.method.take(run.lm, run.pool, part_LKC[:, max(0, K - len(ids)) :])
        when.append(first)
    run.cached = [*run.cached[-1:], (documents, when)]  # `_remembered` does not reach older ones


def _read_unrelated(run: MPlusRun, rng: Random) -> tuple[Tensor, int]:
    """(loss, tokens) of running text that reads the pool, and half of the time long-term rows, about something else.

    The target is what the base model predicts without memory (KL), since such a memory should change nothing. The
    authors use the next token instead.
    """
    sentences, recipe, model = _running_text(run, rng), run.recipe, run.lm.model
    prefix = TrainablePrefix(run.lm, run.method, run.pool.row_LNC, None, None, sentences.of_Q, sentences.asked_QT)
    prefix.detached = recipe.detached
    if run.past and rng.random() < 0.5:
        past = rng.sample(run.past, min(len(run.past), recipe.past_writes))
        seen_LGK = torch.cat([seen for _, seen in past]).expand(run.lm.dims.num_layers, -1, -1)
        prefix.writes = Writes(torch.cat([row for row, _ in past], dim=1), seen_LGK)
        num_long = rng.choice(recipe.read_long_rows)
        prefix.num_long = num_long if run.method.config.long_slots else 0
    ids_BT, real_BT = sentences.batch.ids_BT, sentences.batch.kind_BT > 0
    lead_BT = torch.tensor(run.lm.bos, dtype=torch.long).expand(len(ids_BT), -1)
    positions_BT = prefix.offset_tokens + torch.arange(ids_BT.shape[1])[None]
    with cast(run.lm.device, run.recipe):
        with torch.no_grad():
            base_BTV = model(torch.cat([lead_BT, ids_BT], dim=1), use_cache=False).logits[:, lead_BT.shape[1] :]
        read_BTV = model(ids_BT, position_ids=positions_BT, use_cache=False, memory=prefix, role="read").logits
    base_NV, read_NV = (logits_BTV[real_BT].float().log_softmax(-1) for logits_BTV in (base_BTV, read_BTV))
    loss = functional.kl_div(read_NV, base_NV, log_target=True, reduction="batchmean")
    run.count(plain_nats=loss.item())
    if prefix.score:  # no write is about this text, so none should score high
        best_LQ = torch.stack([score_QG.amax(1) for score_QG in prefix.score.values()])
        run.count(plain_best=best_LQ.mean().item())
        loss = loss - recipe.quiet_weight * (1 - best_LQ + 1e-3).log().mean()
    return recipe.plain_weight * loss, ids_BT.numel()


def _running_text(run: MPlusRun, rng: Random, count: int = 16) -> Sentences:
    """Sentences of running text, from books, or else from generated passages."""
    texts = run.corpora.paragraphs or distractor_passages(64, rng.randrange(1000))
    rows = []
    for _ in range(count):
        ids = run.encoder(rng.choice(texts))[0]
        begin = rng.randrange(max(1, len(ids) - run.recipe.sentence_tokens))
        rows.append(ids[begin : begin + run.recipe.sentence_tokens])
    documents = [MPlusDocument([], [Sentence(ids, [TEXT] * len(ids), None)]) for ids in rows]
    return gather_sentences(rng, documents, count, run.encoder.pad, run.recipe.sentence_tokens)


def _revisit(run: MPlusRun, rng: Random) -> tuple[Tensor, int]:
    """(loss, tokens) of questions about documents of an earlier step, whose rows are in pool and long-term memory.

    Only this task reads the long-term memory of the run: its last `REMEMBERED_WRITES` writes (the paper: all). A method
    without slots for it (M+'s first two stages) scores them, which trains the retriever, and reads none.
    """
    documents, when = rng.choice(run.cached)
    sentences = _gathered(run, rng, documents)
    first, writes = _remembered(run)
    num_long = rng.choice(run.recipe.read_long_rows)
    prefix = TrainablePrefix(
        run.lm,
        run.method,
        run.pool.row_LNC,
        None,
        None,
        sentences.of_Q,
        sentences.asked_QT,
        writes,
        num_long if run.method.config.long_slots else 0,
        detached=run.recipe.detached,
    )
    losses, _, whole = read_sentences(run, prefix, sentences)
    run.count(revisit_answer=losses.answer.item(), revisit_exact=whole)
    asks_Q, G = sentences.place_Q >= 0, writes.seen_LGK.shape[1]
    at_Q = torch.tensor(when)[sentences.of_Q] + sentences.place_Q - first
    asks_Q &= (at_Q >= 0) & (at_Q < G)
    wanted_QG = torch.zeros(len(at_Q), G, dtype=torch.bool)
    wanted_QG[asks_Q, at_Q[asks_Q]] = True
    loss = losses.total + run.recipe.retriever_weight * _retriever_loss(run, prefix, wanted_QG[asks_Q], asks_Q)
    return loss, sentences.batch.ids_BT.numel()


def _remembered(run: MPlusRun) -> tuple[int, Writes]:
    """(number of the first write, the newest writes of long-term memory, with the rows that each layer has dropped)."""
    blocks, K = run.pool.long.blocks, run.method.config.write_rows
    L, M, C = run.lm.dims.num_layers, blocks.num_rows, run.lm.dims.width
    born_LM = blocks.born_LM() - 1
    first = max(int(born_LM.min()) // K, run.pool.clock // K - REMEMBERED_WRITES)
    G = int(born_LM.max()) // K + 1 - first
    row_LMC, seen_LM = torch.zeros(L, G * K, C), torch.zeros(L, G * K, dtype=torch.bool)
    for layer in range(L):
        here_N = (born_LM[layer] >= first * K).nonzero().squeeze(1)
        at_N = born_LM[layer, here_N] - first * K
        row_LMC[layer, at_N] = blocks.rows(layer, torch.arange(M)[here_N]).float()
        seen_LM[layer, at_N] = True
    return first, Writes(row_LMC.unflatten(1, (G, K)), seen_LM.unflatten(1, (G, K)))
