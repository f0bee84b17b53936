"""Trains the search head, which maps hidden states to vectors: a question is near the passage that answers it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

from remanence.data.facts import HELDOUT, TRAIN, sample_group
from remanence.lm.embedder import mean_hidden
from remanence.lm.lm import LM
from remanence.train.examples.corpora import Corpora


@dataclass(frozen=True)
class HeadRecipe:
    """How a head is trained: one for each of `layers`, the best on held-out facts is used. `batch`: pairs per step."""

    layers: tuple[int, ...] = (0, 1, 2)
    dim: int = 128
    groups: int = 1500
    heldout_groups: int = 250
    steps: int = 600
    batch: int = 512
    lr: float = 2e-3
    temperature: float = 0.05


@dataclass(frozen=True)
class Head:
    """`weight_EC` reads the hidden states of `layer`.

    `recall1`, `recall5`: shares of held-out questions whose passage is found first, or among the first five.
    """

    layer: int
    weight_EC: Tensor
    recall1: float
    recall5: float


@dataclass(frozen=True)
class QuestionPassages:
    """Mean hidden states of questions and passages; `answered_by_Q` (int64): the passage of each question."""

    question_QC: Tensor
    passage_PC: Tensor
    answered_by_Q: Tensor


def train_head(lm: LM, recipe: HeadRecipe, corpora: Corpora, seed: int) -> Head:
    """The best head of `recipe.layers`. The model does not change."""
    train_texts = _texts(Random(f"head {seed}"), recipe.groups, TRAIN, corpora)
    heldout_texts = _texts(Random(f"head heldout {seed}"), recipe.heldout_groups, HELDOUT, Corpora())
    heads = []
    for layer in recipe.layers:
        fitted = _fit(_features(lm, layer, *train_texts), recipe, seed)
        recalls = recall(_features(lm, layer, *heldout_texts), fitted)
        heads.append(Head(layer, fitted, *recalls))
    return max(heads, key=lambda head: head.recall5)


def _texts(rng: Random, groups: int, split: str, corpora: Corpora) -> tuple[list[str], list[str], list[int]]:
    """(questions, passages, index of each question's passage), in groups of five similar passages."""
    questions: list[str] = []
    passages: list[str] = []
    answered_by: list[int] = []
    for _ in range(groups):
        example = sample_group(rng, 5, split)
        questions += [question.text for question in example.questions]
        answered_by += [len(passages) + question.passage for question in example.questions]
        passages += [passage.text for passage in example.passages]
    for context in corpora.contexts:
        for question, _ in context.questions:
            questions.append(question)
            answered_by.append(len(passages))
        passages.append(context.text)
    return questions, passages, answered_by


def _features(
    lm: LM, layer: int, questions: list[str], passages: list[str], answered_by: list[int]
) -> QuestionPassages:
    return QuestionPassages(_means(lm, layer, questions), _means(lm, layer, passages), torch.tensor(answered_by))


@torch.no_grad()
def _means(lm: LM, layer: int, texts: list[str], batch: int = 64) -> Tensor:
    """mean_NC in the order of `texts`, computed in batches of similar length."""
    rows = [lm.encode(text)[:256] for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    mean_NC = torch.zeros(len(rows), lm.dims.width)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        lengths = [len(rows[i]) for i in chosen]
        ids_BT = torch.tensor([rows[i] + [0] * (max(lengths) - len(rows[i])) for i in chosen], device=lm.device)
        num_tokens_B = torch.tensor(lengths, device=lm.device)
        with torch.autocast(lm.device.type, torch.bfloat16):
            mean_NC[chosen] = mean_hidden(lm.model, ids_BT, num_tokens_B, layer).cpu()
    return mean_NC


def _fit(pairs: QuestionPassages, recipe: HeadRecipe, seed: int) -> Tensor:
    """weight_EC by InfoNCE: the passages of all other questions in the batch are negatives."""
    generator = torch.Generator().manual_seed(seed)
    width = pairs.question_QC.shape[1]
    weight_EC = (torch.randn(recipe.dim, width, generator=generator) / width**0.5).requires_grad_()
    optimizer = torch.optim.AdamW([weight_EC], lr=recipe.lr, weight_decay=0.0)
    for step in range(recipe.steps):
        start = int(torch.randint(max(1, len(pairs.question_QC) - recipe.batch), (1,), generator=generator))
        chosen = torch.arange(start, min(start + recipe.batch, len(pairs.question_QC)))
        passages, label = pairs.answered_by_Q[chosen].unique(return_inverse=True)
        query_QE = functional.normalize(pairs.question_QC[chosen] @ weight_EC.T, dim=-1)
        passage_PE = functional.normalize(pairs.passage_PC[passages] @ weight_EC.T, dim=-1)
        loss = functional.cross_entropy(query_QE @ passage_PE.T / recipe.temperature, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = recipe.lr * (1 - step / recipe.steps)
        optimizer.step()
    return weight_EC.detach()


def recall(pairs: QuestionPassages, weight_EC: Tensor) -> tuple[float, float]:
    """Shares of questions whose passage is the nearest, and among the five nearest, of all passages."""
    query_QE = functional.normalize(pairs.question_QC @ weight_EC.T, dim=-1)
    passage_PE = functional.normalize(pairs.passage_PC @ weight_EC.T, dim=-1)
    best = (query_QE @ passage_PE.T).topk(min(5, len(passage_PE)), dim=-1).indices
    hit = best.eq(pairs.answered_by_Q[:, None])
    return hit[:, 0].float().mean().item(), hit.any(-1).float().mean().item()
