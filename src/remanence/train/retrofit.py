"""Continual training that gives an existing model explicit memory (Memory³ §5.3): it learns to write and to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from remanence.lm.lm import LM
from remanence.methods.memory3.layout import Group
from remanence.methods.memory3.method import Memory3, Memory3Config
from remanence.train.chat import holding
from remanence.train.chat_rows import ChatBatch
from remanence.train.corpora import Corpora
from remanence.train.further import logits_at
from remanence.train.loop import Run, Task
from remanence.train.losses import Losses, answer_losses, exact_answers, targets
from remanence.train.memory import write_by_length
from remanence.train.model import cast
from remanence.train.recipes.retrofit import RetrofitRecipe
from remanence.train.retrofit_rows import draw_questions, draw_texts, pack_questions, pack_texts
from remanence.train.rows import Encoder
from remanence.train.schedule import rate_at
from remanence.types import Prefix

EVAL_GROUPS = 16


@dataclass(kw_only=True)
class RetrofitRun(Run):
    """A run that gives `lm` memory. `config`: how it is written and read, but for the number of kept tokens."""

    recipe: RetrofitRecipe
    lm: LM
    config: Memory3Config
    encoder: Encoder
    corpora: Corpora


def continual(run: RetrofitRun, num_steps: int) -> Task:
    """The task; the model as it is now is the base that steps without memory keep to."""
    recipe, start = run.recipe, _start(run)
    run.lm.model.train()

    def loss(number: int) -> tuple[Tensor, int]:
        is_plain = recipe.plain_every and recipe.reads and number % recipe.plain_every == recipe.plain_every - 1
        return _plain_loss(run, start, number) if is_plain else _memory_loss(run, number)

    def rate(step: int) -> float:
        scheduled = rate_at(recipe.schedule, step, num_steps, recipe.warmup_steps, recipe.decay_share)
        return recipe.highest_lr * scheduled

    def evaluated(step: int) -> dict[str, Any]:
        return evaluate(run)

    smaller = "groups, questions or texts (--set groups=4)"
    return Task("continual", loss, rate, evaluated, recipe.eval_every, evaluated, recipe=recipe, smaller=smaller)


def _start(run: RetrofitRun) -> dict[str, Tensor]:
    """All weights before the first step, where all are trained: an adapter's base is there without it."""
    wanted = run.recipe.lora is None and run.recipe.plain_every
    return {name: p.detach().clone() for name, p in run.optimizer.model.items()} if wanted else {}


def _drawn(run: RetrofitRun, name: str, as_text: bool) -> list[ChatBatch]:
    """The questions of a step, and its running text where there are books; `as_text`: to be read without memory."""
    rng, recipe, lm = Random(f"{run.recipe.seed} {name}"), run.recipe, run.lm
    asked = draw_questions(rng, recipe, lm, run.corpora, run.encoder)
    batches = [pack_questions(lm, asked, recipe, as_text=as_text)]
    rows = draw_texts(rng, recipe, run.corpora.paragraphs)
    return [*batches, pack_texts(lm, rows, recipe, alone=as_text)] if rows else batches


def _memory_loss(run: RetrofitRun, number: int) -> tuple[Tensor, int]:
    """Answers, and `text_weight` times running text, in nats per token; all of it read with memories."""
    recipe = run.recipe
    kept = recipe.kept_tokens[number % len(recipe.kept_tokens)]
    batches = _drawn(run, f"retrofit {number}", as_text=False)
    found = [read_losses(run, batch, kept, number) for batch in batches]
    run.count(loss_answer=float(found[0].answer))
    if len(found) > 1:
        run.count(loss_text=float(found[1].text))
    total = found[0].total + sum(recipe.text_weight * losses.total for losses in found[1:])
    return total, sum(batch.ids_BT.numel() for batch in batches)


def read_losses(run: RetrofitRun, batch: ChatBatch, kept_tokens: int | None, shift: int = 0) -> Losses:
    """Nats per token of all answers, and of every `text_stride`-th other token that is learned."""
    logits_NV, index_N = read(run, batch, kept_tokens, shift)
    return answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, 1.0)


def read(run: RetrofitRun, batch: ChatBatch, kept_tokens: int | None, shift: int = 0) -> tuple[Tensor, Tensor]:
    """(logits_NV, index_N): the batch read with its references as memories; without any where it has none."""
    index_N = targets(batch.kind_BT, run.recipe.text_stride, shift)
    with cast(run.lm.device, run.recipe):
        memory = _prefix(run, batch, Memory3(replace(run.config, kept_tokens=kept_tokens)))
        return logits_at(run.lm, batch.ids_BT, index_N, memory, run.lm.reads_as), index_N


def _prefix(run: RetrofitRun, batch: ChatBatch, method: Memory3) -> Prefix | None:
    if not batch.references:
        return None
    with torch.set_grad_enabled(torch.is_grad_enabled() and run.recipe.writes):
        parts = write_by_length(run.lm, method, batch.references, gradient=False)
    memory = {i: memory for part in parts for i, memory in zip(part.rows, part.memories, strict=True)}
    groups = [[Group(0, tuple(memory[i] for i in row))] for row in batch.rows]
    return method.prefix(run.lm, groups, [batch.ids_BT.shape[1]] * len(groups))


def _plain_loss(run: RetrofitRun, start: Mapping[str, Tensor], number: int) -> tuple[Tensor, int]:
    """`plain_weight` times KL from the base, per token, over running text and prompts with their passages."""
    batches = _drawn(run, f"plain {number}", as_text=True)
    nats = torch.cat([_from_base(run, start, batch, number) for batch in batches]).mean()
    run.count(plain_nats=float(nats.detach()))
    return run.recipe.plain_weight * nats, sum(batch.ids_BT.numel() for batch in batches)


def _from_base(run: RetrofitRun, start: Mapping[str, Tensor], batch: ChatBatch, shift: int) -> Tensor:
    """nats_N: KL of the model from its base at every `text_stride`-th token."""
    (_, T), device = batch.ids_BT.shape, run.lm.device
    chosen_T = (torch.arange(T, device=device) + shift) % run.recipe.text_stride == 0
    ends_B = _lengths(batch)
    index_N = (chosen_T & (torch.arange(T, device=device) < ends_B[:, None])).flatten().nonzero().squeeze(1)
    trained = run.optimizer.model if start else {}
    with torch.no_grad(), holding(trained, start), cast(device, run.recipe):
        base_NV = logits_at(run.lm, batch.ids_BT, index_N, None, None)
    with cast(device, run.recipe):  # anew: autocast keeps the weights that it has cast
        now_NV = logits_at(run.lm, batch.ids_BT, index_N, None, run.lm.reads_as)
    base_NV, now_NV = base_NV.float().log_softmax(-1), now_NV.float().log_softmax(-1)
    return functional.kl_div(now_NV, base_NV, log_target=True, reduction="none").sum(-1)


def _lengths(batch: ChatBatch) -> Tensor:
    """length_B: up to the last token that is learned, which is a row's last."""
    learned_BT = batch.kind_BT > 0
    T = learned_BT.shape[1]
    return T - learned_BT.flip(1).int().argmax(1)


@torch.no_grad()
def evaluate(run: RetrofitRun) -> dict[str, float]:
    """On facts that no training saw: nats per token and whole answers, with memories of each of `kept_tokens`.

    "none": the same questions without memory.
    """
    run.lm.model.eval()
    run.lm.drop_constants()  # fused optimizers change weights without torch counting it
    recipe = replace(run.recipe, groups=EVAL_GROUPS)
    texts = draw_questions(Random(f"{recipe.seed} heldout"), recipe, run.lm, run.corpora, run.encoder, "heldout")
    batch = pack_questions(run.lm, texts, recipe)
    alone = replace(batch, references=[], rows=[()] * len(batch.rows))
    found = {}
    kept = [(f"memory{'all' if kept is None else kept}", batch, kept) for kept in dict.fromkeys(recipe.kept_tokens)]
    for name, part, tokens in [*kept, ("none", alone, None)]:
        logits_NV, index_N = read(run, part, tokens)
        loss = answer_losses(logits_NV, index_N, part.ids_BT, part.kind_BT, 0.0).answer
        found |= {f"loss_{name}": round(float(loss), 4)}
        found |= {f"{name}_exact": round(exact_answers(logits_NV, index_N, part.ids_BT, part.kind_BT)[1], 3)}
    run.lm.model.train()
    return found
