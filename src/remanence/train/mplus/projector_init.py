"""Initial weights of the retriever's projectors, in closed form: equal words of question and passage match."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from remanence.lm import attention
from remanence.lm.hidden_states import norm_of
from remanence.train.core.model import cast
from remanence.train.examples.documents import MPlusDocument, Sentences, draw_document, gather_sentences
from remanence.train.mplus.run import MPlusRun
from remanence.train.mplus.steps import valid_rows, write_documents
from remanence.train.recipes.nano_mplus import MPlusPhase

RIDGE = 0.01
"""Share of the mean variance that is added to all variances, so that nearly constant directions are not amplified."""
MATCHED, UNMATCHED = 3.0, -3.0
"""Target of q · k: for the median pair of one rare word, and for the 99th percentile of other pairs."""
RARE = 1.5
"""Words of at least this weight count as rare."""


@dataclass(frozen=True)
class WordPairs:
    """The inputs of one layer's retriever, one entry for each question q.

    `asked[q]`: hidden_TC of the question. `row[q]`: normalised row_KC of its passage. `weight[q]`: weight_TK, the
    rarity of the word that token t and row k share, else 0.
    """

    asked: list[Tensor]
    row: list[Tensor]
    weight: list[Tensor]


@torch.no_grad()
def match_words(run: MPlusRun, num_documents: int) -> None:
    """Sets all projectors so that the rare words of a question find their rows (canonical correlation).

    With random projectors all q · k are large and similar, since normalised hidden states share one direction: all
    sigmoids are 1, and nothing is learned (docs/mplus.md). Here that direction carries a constant that is subtracted
    from every q · k, as a threshold.
    """
    layers = _pairs(run, num_documents)
    modules = run.method.modules(run.lm)
    for layer, pairs in enumerate(layers):
        query_EC, key_EC = word_maps(pairs, run.method.config.key_width)
        _set_linear(modules.query[layer], query_EC)
        _set_linear(modules.key[layer], key_EC)
        _set_linear(modules.encoder_query[layer], torch.cat([key_EC[:-1], -key_EC[-1:]]))


def word_maps(pairs: WordPairs, width: int) -> tuple[Tensor, Tensor]:
    """(query_EC, key_EC); the last of the E = `width` directions is the threshold."""
    asked_NC, row_NC = torch.cat(pairs.asked), torch.cat(pairs.row)
    (level_q, centre_q, white_q), (level_k, centre_k, white_k) = _parts(asked_NC), _parts(row_NC)
    shared_CC = torch.zeros(asked_NC.shape[1], asked_NC.shape[1])
    for asked_TC, row_KC, weight_TK in zip(pairs.asked, pairs.row, pairs.weight, strict=True):
        shared_CC += (asked_TC @ centre_q.T).T @ weight_TK @ (row_KC @ centre_k.T)
    left, strength, right = torch.linalg.svd(
        white_q @ (shared_CC / max(1e-6, sum(float(w.sum()) for w in pairs.weight))) @ white_k
    )
    root_E = strength[: width - 1].sqrt()
    query_EC = (root_E[:, None] * left[:, : width - 1].T) @ white_q @ centre_q
    key_EC = (root_E[:, None] * right[: width - 1]) @ white_k @ centre_k
    high, low = _levels(pairs, query_EC, key_EC)
    slope = (MATCHED - UNMATCHED) / (high - low)
    threshold = max(slope * high - MATCHED, 0.0) ** 0.5
    return (
        torch.cat([slope**0.5 * query_EC, threshold * level_q[None]]),
        torch.cat([slope**0.5 * key_EC, -threshold * level_k[None]]),
    )


def _parts(input_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(level_C, a map to about 1 for all inputs; centre_CC, which removes the mean; white_CC, whitening after it)."""
    mean_C, eye_CC = input_NC.mean(0), torch.eye(input_NC.shape[1])
    moment_CC = input_NC.T @ input_NC / len(input_NC)
    level_C = torch.linalg.solve(moment_CC + 1e-3 * moment_CC.diagonal().mean() * eye_CC, mean_C)
    level_C = level_C / (level_C @ mean_C)
    centre_CC = eye_CC - torch.outer(mean_C, level_C)
    centred_NC = input_NC @ centre_CC.T
    value_C, basis_CC = torch.linalg.eigh(centred_NC.T @ centred_NC / len(centred_NC))
    white_CC = basis_CC @ torch.diag((value_C + RIDGE * value_C.mean()).rsqrt()) @ basis_CC.T
    return level_C, centre_CC, white_CC


def _levels(pairs: WordPairs, query_EC: Tensor, key_EC: Tensor) -> tuple[float, float]:
    """q · k of the median pair of one rare word, and the 99th percentile of pairs of a question and another passage."""
    matched, other = [], []
    for number, (asked_TC, weight_TK) in enumerate(zip(pairs.asked, pairs.weight, strict=True)):
        query_TE = asked_TC @ query_EC.T
        matched.append((query_TE @ (pairs.row[number] @ key_EC.T).T)[weight_TK > RARE])
        other.append((query_TE @ (pairs.row[(number + 7) % len(pairs.row)] @ key_EC.T).T).flatten()[::17])
    low = float(torch.cat(other)[:500_000].quantile(0.99))
    high = float(torch.cat(matched).quantile(0.5)) if len(torch.cat(matched)) else 0.0
    return (high, low) if high > low else (low + 1.0, low)


def _set_linear(projector: nn.Module, map_EC: Tensor) -> None:
    """Sets a two-layer projector to a linear map, by SiLU(x) - SiLU(-x) = x."""
    assert isinstance(projector, nn.Sequential)
    wide, narrow = projector[0], projector[2]
    assert isinstance(wide, nn.Linear)
    assert isinstance(narrow, nn.Linear)
    wide.weight.copy_(torch.cat([map_EC, -map_EC]))
    narrow.weight.copy_(torch.cat([torch.eye(len(map_EC)), -torch.eye(len(map_EC))], dim=1))


def _pairs(run: MPlusRun, num_documents: int) -> list[WordPairs]:
    rng, phase = Random(f"{run.recipe.seed} words"), MPlusPhase(1, full=0.0, repeat=0.0, books=0.0, squad=0.2)
    documents: list[MPlusDocument] = []
    while len(documents) < num_documents:
        document = draw_document(rng, phase, run.recipe, run.corpora, run.encoder, 1)
        if document.sentences and document.sentences[0].place is not None:
            documents.append(document)
    seen = Counter(token for document in documents for token in set(document.chunks[0]))
    rarity = {token: torch.tensor(num_documents / (1 + count)).log().clamp(min=0) for token, count in seen.items()}
    layers = [WordPairs([], [], []) for _ in range(run.lm.dims.num_layers)]
    for start in range(0, num_documents, 32):
        part = documents[start : start + 32]
        _add_pairs(run, part, gather_sentences(rng, part, 32, run.encoder.pad), rarity, layers)
    return layers


def _add_pairs(
    run: MPlusRun,
    documents: list[MPlusDocument],
    sentences: Sentences,
    rarity: dict[int, Tensor],
    layers: list[WordPairs],
) -> None:
    config, ids_BT, L = run.method.config, sentences.batch.ids_BT, run.lm.dims.num_layers
    K, watch = config.write_rows, attention.AttentionCapture(frozenset(range(L)))
    positions_BT = 1 + config.long_slots + config.pool_rows + torch.arange(ids_BT.shape[1])[None]
    with cast(run.lm.device, run.recipe):
        row_DLRC = write_documents(run, documents)
        run.lm.model.model(ids_BT, position_ids=positions_BT, use_cache=False, role="read", watch=watch)
    seen_DR = valid_rows(documents, K)
    for q, d in enumerate(sentences.of_Q.tolist()):
        asks_T, seen_R = sentences.asked_QT[q], seen_DR[d]
        asked, chunk = ids_BT[q][asks_T].tolist(), documents[d].chunks[0][-K:]
        weight_TK = torch.tensor([[float(rarity[a]) if a == b else 0.0 for b in chunk] for a in asked])
        for layer in range(L):
            layers[layer].asked.append(watch.hidden[layer][q][asks_T].float())
            layers[layer].row.append(norm_of(run.lm.model, layer)(row_DLRC[d, layer][seen_R]).float())
            layers[layer].weight.append(weight_TK)
