"""SFT and DPO (Memory³ §6), with memories active [inferred]: answers alone are learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from remanence.data.unknown import UNKNOWN
from remanence.lm.lm import LM
from remanence.methods.memory3.layout import Group
from remanence.methods.memory3.method import Memory3, Memory3Config
from remanence.train.chat_rows import ChatBatch, Texts, answers_of, draw_texts, pack_chat, told_texts
from remanence.train.conversations import Conversation, drawn
from remanence.train.corpora import Corpora
from remanence.train.further import logits_at
from remanence.train.loop import Run, Task
from remanence.train.losses import exact_answers
from remanence.train.model import cast
from remanence.train.recipes.chat import ChatRecipe, ChatStage
from remanence.train.rows import Encoder
from remanence.train.schedule import rate_at

RISE = 0.1
"""Of the steps: the linear warm-up of both (Memory³ §6.1)."""
EVAL_GROUPS = 40


@dataclass(kw_only=True)
class ChatRun(Run):
    """A run that goes on from a model which reads memory. `config`: how, but for the number of kept tokens.

    `conversations`: of a file; where there are none, the generator's passages and questions.
    """

    recipe: ChatRecipe
    lm: LM
    config: Memory3Config
    encoder: Encoder
    corpora: Corpora
    conversations: list[Conversation] = field(default_factory=list)


def logprobs(run: ChatRun, batch: ChatBatch, kept_tokens: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(logit_NV, their index_N, logp_N float32) of the tokens of all answers; no gradient reaches the writing."""
    index_N = answers_of(batch)
    method = Memory3(replace(run.config, kept_tokens=kept_tokens))
    with cast(run.lm.device, run.recipe):
        prefix = None
        if batch.references:
            with torch.no_grad():
                written = method.write(run.lm, batch.references)
            groups = [[Group(0, tuple(written[i] for i in row))] for row in batch.rows]
            prefix = method.prefix(run.lm, groups, [batch.ids_BT.shape[1]] * len(groups))
        logit_NV = logits_at(run.lm, batch.ids_BT, index_N, prefix, run.lm.reads_as)
    logp_NV = logit_NV.float().log_softmax(-1)
    return logit_NV, index_N, logp_NV.gather(1, batch.ids_BT.flatten()[index_N + 1][:, None]).squeeze(1)


def sft(run: ChatRun, num_steps: int) -> Task:
    """Nats per token of answers."""

    def loss(number: int) -> tuple[Tensor, int]:
        batch, kept = _batch(run, "sft", number)
        nats = -logprobs(run, batch, kept)[2].mean()
        run.count(loss_answer=float(nats.detach()))
        return nats, batch.ids_BT.numel()

    return _task(run, "sft", loss, num_steps)


def dpo(run: ChatRun, num_steps: int) -> Task:
    """The chosen answer against the rejected one, both read with the same memories; the run's weights as they are now
    are the reference."""
    trained = dict(run.optimizer.model)
    reference = {name: p.detach().clone() for name, p in trained.items()}

    def loss(number: int) -> tuple[Tensor, int]:
        batch, kept = _batch(run, "dpo", number)
        run.lm.drop_constants()  # an evaluation has kept those of the weights as they were
        with torch.no_grad(), holding(trained, reference):
            before_B = by_row(batch, *logprobs(run, batch, kept)[1:])
        run.lm.drop_constants()
        _, index_N, logp_N = logprobs(run, batch, kept)
        gain_B = by_row(batch, index_N, logp_N) - before_B
        half = len(gain_B) // 2
        margin_R = run.recipe.beta * (gain_B[:half] - gain_B[half:])
        chosen_N = index_N < half * batch.ids_BT.shape[1]
        nats = -logp_N[chosen_N].mean()
        won_R = margin_R.detach()
        run.count(
            loss_answer=float(nats.detach()), margin=float(won_R.mean()), preferred=float((won_R > 0).float().mean())
        )
        return dpo_loss(margin_R) + run.recipe.nll_weight * nats, batch.ids_BT.numel()

    return _task(run, "dpo", loss, num_steps)


def dpo_loss(margin_R: Tensor) -> Tensor:
    """Mean of -log σ(margin), the margin being β (gain of the chosen - gain of the rejected) over the reference."""
    return -functional.logsigmoid(margin_R).mean()


def by_row(batch: ChatBatch, index_N: Tensor, logp_N: Tensor) -> Tensor:
    """logp_B: sums over each row's answer."""
    B, T = batch.ids_BT.shape
    return logp_N.new_zeros(B).index_add_(0, index_N // T, logp_N)


@contextmanager
def holding(trained: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other weights for a while: those of the reference, without a second model."""
    now = {name: p.data for name, p in trained.items()}
    for name, p in trained.items():
        p.data = weights[name]
    try:
        yield
    finally:
        for name, p in trained.items():
            p.data = now[name]


def _batch(run: ChatRun, stage: ChatStage, number: int) -> tuple[ChatBatch, int | None]:
    """Batch `number`, and the tokens that its memories keep."""
    phase = run.recipe.phase_of(stage)
    as_text = bool(phase.text_every) and number % phase.text_every == phase.text_every - 1
    if run.conversations:
        count = phase.groups * phase.questions
        texts = told_texts(drawn(run.conversations, run.recipe.seed, number, count))
    else:
        if as_text:  # their rows are several times as long
            phase = replace(phase, groups=-(-phase.groups // 3))
        texts = draw_texts(Random(f"{run.recipe.seed} {stage} {number}"), phase, run.corpora, run.encoder)
    batch = _packed(run, texts, as_text=as_text, rejected=stage == "dpo")
    return batch, run.recipe.kept_tokens[number % len(run.recipe.kept_tokens)]


def _packed(run: ChatRun, texts: Texts, *, as_text: bool = False, rejected: bool = False) -> ChatBatch:
    most = run.config.reference_tokens
    return pack_chat(
        run.lm,
        texts,
        run.encoder,
        run.recipe.row_tokens,
        as_text=as_text,
        rejected=rejected,
        reference_tokens=most,
    )


def _task(run: ChatRun, stage: ChatStage, loss: Any, num_steps: int) -> Task:
    run.lm.model.train()
    lr = run.recipe.phase_of(stage).lr

    def rate(step: int) -> float:
        return lr * rate_at("cosine", step, num_steps, max(1, round(RISE * num_steps)), 1.0)

    def evaluated(step: int) -> dict[str, Any]:
        return evaluate(run)

    def ends(step: int) -> dict[str, Any]:
        return {} if step and step % recipe.eval_every == 0 else evaluate(run)

    recipe = run.recipe
    return Task(
        stage,
        loss,
        rate,
        evaluated,
        recipe.eval_every,
        ends,
        recipe=recipe,
        parts=recipe.phase_of(stage).parts,
        smaller=f"its groups (--set {stage}.groups=4)",
    )


@torch.no_grad()
def evaluate(run: ChatRun) -> dict[str, float]:
    """On held-out facts with memories as each of `kept_tokens` says: whole answers that are exact where the fact is
    in a memory, and where it is in none."""
    run.lm.model.eval()
    run.lm.drop_constants()
    phase = replace(run.recipe.sft, groups=EVAL_GROUPS, absent=0.5, empty=0.0)
    texts = draw_texts(Random(f"{run.recipe.seed} chat"), phase, run.corpora, run.encoder, "heldout")
    found = {}
    for kept in run.recipe.kept_tokens:
        for name, is_absent in (("answered", False), ("abstained", True)):
            part = replace(texts, asked=[a for a in texts.asked if (a.answer == UNKNOWN) == is_absent])
            batch = _packed(run, part)
            logit_NV, index_N, _ = logprobs(run, batch, kept)
            whole = exact_answers(logit_NV, index_N, batch.ids_BT, batch.kind_BT)[1]
            found[f"{name}_{'all' if kept is None else kept}"] = round(whole, 3)
    run.lm.drop_constants()
    run.lm.model.train()
    return found
