"""The training loss (answer tokens with weight 1, a sample of other text with a small one), and exact answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from remanence.train.core.parallel import mean, size

ANSWER, TEXT = 2, 1


@dataclass(frozen=True)
class Losses:
    """Scalars. `total` is minimised; `answer` and `text` are means in nats per token (0 if there is no such token).

    `answer` and `text` are over the examples of all processes. `total` is this process's part: the mean over all
    processes is the loss of the batch (`parallel.mean`).
    """

    total: Tensor
    answer: Tensor
    text: Tensor


def targets(kind_BT: Tensor, text_stride: int, shift: int = 0) -> Tensor:
    """index_N (int64) into the B·T positions that predict an answer token, or every `text_stride`-th text token.

    `shift` moves the choice of text tokens.
    """
    kind = kind_BT[:, 1:]
    sampled = (torch.arange(kind.shape[1], device=kind.device) + shift) % text_stride == 0
    chosen = kind.eq(ANSWER) | (kind.eq(TEXT) & sampled)
    return functional.pad(chosen, (0, 1)).flatten().nonzero().squeeze(1)


def answer_losses(
    logits_NV: Tensor, index_N: Tensor, ids_BT: Tensor, kind_BT: Tensor, text_weight: float, z_weight: float = 0.0
) -> Losses:
    """Cross entropy of `logits_NV`, which are at the positions `index_N` and predict the tokens after them.

    `z_weight`: weight of the z-loss, the squared log of the softmax's denominator (PaLM §5), in `total` only.
    """
    nats_N = plain_N = functional.cross_entropy(logits_NV.float(), ids_BT.flatten()[index_N + 1], reduction="none")
    kind_N = kind_BT.flatten()[index_N + 1]
    answer, text = kind_N.eq(ANSWER).float(), kind_N.eq(TEXT).float()
    weight = answer + text_weight * text
    if z_weight:
        nats_N = nats_N + z_weight * logits_NV.float().logsumexp(-1) ** 2
    total = (nats_N * weight).sum() / mean(weight.sum()).clamp(min=1e-6)
    return Losses(total, _mean(plain_N, answer), _mean(plain_N, text))


def _mean(nats_N: Tensor, chosen_N: Tensor) -> Tensor:
    return mean((nats_N * chosen_N).sum()) / mean(chosen_N.sum()).clamp(min=1.0 / size())


def exact_answers(logits_NV: Tensor, index_N: Tensor, ids_BT: Tensor, kind_BT: Tensor) -> tuple[float, float]:
    """(share of answer tokens, share of whole answers) that are the most likely ones, given the true prefix.

    If a whole answer is exact in this sense, greedy decoding gives it.
    """
    chosen = kind_BT.flatten()[index_N + 1].eq(ANSWER)
    index_N, logits_NV = index_N[chosen], logits_NV[chosen]
    right_N = logits_NV.argmax(-1).eq(ids_BT.flatten()[index_N + 1])
    starts_N = functional.pad(index_N[1:] - index_N[:-1] > 1, (1, 0), value=True)
    number_N = starts_N.int().cumsum(0) - 1
    wrong = torch.zeros(int(number_N[-1]) + 1, device=number_N.device).index_add_(0, number_N, (~right_N).float())
    return right_N.float().mean().item(), wrong.eq(0).float().mean().item()
