"""Retrofit: continual training that gives an existing model explicit memory (Memory³ §5.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from remanence.errors import InputError
from remanence.lm.lm import LM
from remanence.methods.memory3.layout import Group
from remanence.methods.memory3.method import Memory3, Memory3Config, paper
from remanence.train.core import parallel
from remanence.train.core.loop import Task
from remanence.train.core.losses import Losses, answer_losses, exact_answers, targets
from remanence.train.core.model import cast
from remanence.train.core.schedule import rate_at
from remanence.train.core.stages import EXPORT, Stage, Trainer, load_last, require_one_process, start_as_base
from remanence.train.examples.chat import ChatBatch
from remanence.train.examples.retrofit import draw_questions, draw_text_examples, pack_questions, pack_texts
from remanence.train.export.card import write_card
from remanence.train.finetune.model import (
    FinetuneRun,
    finetune_config,
    kept_tokens_at,
    load_base,
    selected_logits,
    start_finetune_run,
    swapped_weights,
    write_model,
)
from remanence.train.memory3.continual import in_order, write_by_length
from remanence.train.recipes.retrofit import RetrofitRecipe
from remanence.types import Prefix

STAGE = "continual"
EVAL_GROUPS = 16


@dataclass(kw_only=True)
class RetrofitRun(FinetuneRun):
    """A run of retrofit."""

    recipe: RetrofitRecipe


# -- losses ----------------------------------------------------------------------------------


def retrofit_task(run: RetrofitRun, num_steps: int) -> Task:
    """The task. The model with the weights that it has now is the base that steps without memory stay close to."""
    recipe, base = run.recipe, _base_weights(run)
    run.lm.model.train()

    def loss(number: int) -> tuple[Tensor, int]:
        is_plain = recipe.plain_every and recipe.reads and number % recipe.plain_every == recipe.plain_every - 1
        return _base_loss(run, base, number) if is_plain else _memory_loss(run, number)

    def rate(step: int) -> float:
        scheduled = rate_at(recipe.schedule, step, num_steps, recipe.warmup_steps, recipe.decay_share)
        return recipe.highest_lr * scheduled

    def figures(step: int) -> dict[str, Any]:
        return evaluate(run)

    oom_hint = "groups, questions or texts (--set groups=4)"
    return Task(STAGE, loss, rate, figures, recipe.eval_every, figures, recipe=recipe, oom_hint=oom_hint)


def _base_weights(run: RetrofitRun) -> dict[str, Tensor]:
    """A copy of all weights, if all are trained. Otherwise empty: the base is the model without its adapters."""
    is_needed = run.recipe.lora is None and run.recipe.plain_every
    return {name: p.detach().clone() for name, p in run.optimizer.model.items()} if is_needed else {}


def _batches(run: RetrofitRun, name: str, as_text: bool) -> list[ChatBatch]:
    """The questions of a step and, if there are books, its running text. `as_text`: without memory."""
    rng, recipe, lm = Random(f"{run.recipe.seed} {name}"), run.recipe, run.lm
    questions = draw_questions(rng, recipe, lm, run.corpora, run.encoder)
    batches = [pack_questions(lm, questions, recipe, as_text=as_text)]
    texts = draw_text_examples(rng, recipe, run.corpora.paragraphs)
    return [*batches, pack_texts(lm, texts, recipe, alone=as_text)] if texts else batches


def _memory_loss(run: RetrofitRun, number: int) -> tuple[Tensor, int]:
    """(loss, tokens) read with memories: nats per token of answers, and `text_weight` times that of running text."""
    recipe = run.recipe
    kept_tokens = kept_tokens_at(recipe.kept_tokens, number)
    batches = _batches(run, f"retrofit {number}", as_text=False)
    answers, *texts = [read_losses(run, batch, kept_tokens, number) for batch in batches]
    run.count(loss_answer=float(answers.answer))
    if texts:
        run.count(loss_text=float(texts[0].text))
    total = answers.total + sum(recipe.text_weight * losses.total for losses in texts)
    return total, sum(batch.ids_BT.numel() for batch in batches)


def read_losses(run: RetrofitRun, batch: ChatBatch, kept_tokens: int | None, shift: int = 0) -> Losses:
    """Nats per token of all answers, and of every `text_stride`-th token of text."""
    logits_NV, index_N = read(run, batch, kept_tokens, shift)
    return answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, 1.0)


def read(run: RetrofitRun, batch: ChatBatch, kept_tokens: int | None, shift: int = 0) -> tuple[Tensor, Tensor]:
    """(logits_NV, index_N) of the batch, read with memories of its references, if it has any."""
    index_N = targets(batch.kind_BT, run.recipe.text_stride, shift)
    with cast(run.lm.device, run.recipe):
        memory = _prefix(run, batch, Memory3(replace(run.config, kept_tokens=kept_tokens)))
        return selected_logits(run.lm, batch.ids_BT, index_N, memory, run.lm.reads_as), index_N


def _prefix(run: RetrofitRun, batch: ChatBatch, method: Memory3) -> Prefix | None:
    if not batch.references:
        return None
    with torch.set_grad_enabled(torch.is_grad_enabled() and run.recipe.writes):
        memories = in_order(write_by_length(run.lm, method, batch.references, gradient=False))
    groups = [[Group(0, tuple(memories[i] for i in row))] for row in batch.rows]
    return method.prefix(run.lm, groups, [batch.ids_BT.shape[1]] * len(groups))


def _base_loss(run: RetrofitRun, base: Mapping[str, Tensor], number: int) -> tuple[Tensor, int]:
    """(loss, tokens): `plain_weight` times KL from the base, per token of running text and prompts with passages."""
    batches = _batches(run, f"plain {number}", as_text=True)
    nats = torch.cat([_divergence(run, base, batch, number) for batch in batches]).mean()
    run.count(plain_nats=float(nats.detach()))
    return run.recipe.plain_weight * nats, sum(batch.ids_BT.numel() for batch in batches)


def _divergence(run: RetrofitRun, base: Mapping[str, Tensor], batch: ChatBatch, shift: int) -> Tensor:
    """nats_N: KL of the model from its base at every `text_stride`-th token."""
    (_, T), device = batch.ids_BT.shape, run.lm.device
    chosen_T = (torch.arange(T, device=device) + shift) % run.recipe.text_stride == 0
    length_B = _lengths(batch)
    index_N = (chosen_T & (torch.arange(T, device=device) < length_B[:, None])).flatten().nonzero().squeeze(1)
    trained = run.optimizer.model if base else {}
    with torch.no_grad(), swapped_weights(trained, base), cast(device, run.recipe):
        base_NV = selected_logits(run.lm, batch.ids_BT, index_N, None, None)
    with cast(device, run.recipe):  # a new context, since autocast caches the weights that it has cast
        own_NV = selected_logits(run.lm, batch.ids_BT, index_N, None, run.lm.reads_as)
    base_NV, own_NV = base_NV.float().log_softmax(-1), own_NV.float().log_softmax(-1)
    return functional.kl_div(own_NV, base_NV, log_target=True, reduction="none").sum(-1)


def _lengths(batch: ChatBatch) -> Tensor:
    """length_B: each row's tokens up to its last target, which is its last token."""
    is_target_BT = batch.kind_BT > 0
    T = is_target_BT.shape[1]
    return T - is_target_BT.flip(1).int().argmax(1)


@torch.no_grad()
def evaluate(run: RetrofitRun) -> dict[str, float]:
    """Nats per token and exact answers on held-out facts, with memories of each of `kept_tokens`.

    "none": the same questions without memory.
    """
    run.lm.model.eval()
    run.lm.drop_constants()  # torch does not notice that fused optimizers change weights
    recipe = replace(run.recipe, groups=EVAL_GROUPS)
    rng = Random(f"{recipe.seed} heldout")
    questions = draw_questions(rng, recipe, run.lm, run.corpora, run.encoder, "heldout")
    batch = pack_questions(run.lm, questions, recipe)
    without_memory = replace(batch, references=[], rows=[()] * len(batch.rows))
    ways = [(f"memory{'all' if count is None else count}", batch, count) for count in dict.fromkeys(recipe.kept_tokens)]
    figures = {}
    for name, part, kept_tokens in [*ways, ("none", without_memory, None)]:
        logits_NV, index_N = read(run, part, kept_tokens)
        loss = answer_losses(logits_NV, index_N, part.ids_BT, part.kind_BT, 0.0).answer
        figures |= {f"loss_{name}": round(float(loss), 4)}
        figures |= {f"{name}_exact": round(exact_answers(logits_NV, index_N, part.ids_BT, part.kind_BT)[1], 3)}
    run.lm.model.train()
    return figures


# -- runs and stages -------------------------------------------------------------------------


def start_retrofit_run(
    recipe: RetrofitRecipe, data: Path | None, folder: Path, *, skip_damaged: bool = False
) -> RetrofitRun:
    """A run at step 0 from the recipe's base. InputError if the base cannot be used, or lacks a memory layer."""
    parallel.start()
    require_one_process("a run of retrofit")
    lm = load_base(recipe.base)
    return start_finetune_run(RetrofitRun, recipe, lm, _config(lm, recipe), data, folder, skip_damaged)


def _config(lm: LM, recipe: RetrofitRecipe) -> Memory3Config:
    config = replace(paper(lm), reference_tokens=recipe.reference_tokens, kept_tokens=recipe.used_kept_tokens)
    if recipe.memory_layers is None:
        return config
    if odd := [layer for layer in recipe.memory_layers if not 0 <= layer < lm.dims.num_layers]:
        raise InputError(f"{lm.name} has no layer {odd[0]}", f"its layers are 0 to {lm.dims.num_layers - 1}")
    return replace(config, memory_layers=tuple(sorted(set(recipe.memory_layers))))


def retrofit_stage(run: RetrofitRun, name: str = STAGE, steps: int | None = None) -> Stage:
    """The only stage, which ends at step `steps` (None: as the recipe says)."""
    num_steps = steps or run.recipe.num_steps
    return Stage(STAGE, num_steps, lambda: retrofit_task(run, num_steps))


def export_retrofit(run: RetrofitRun, folder: Path) -> None:
    """Writes adapters by PEFT's names, or the whole model, in the recipe's dtype.

    `remanence.json` says how the model was trained to read memory.
    """
    load_last(run, [STAGE])
    recipe, config = run.recipe, run.config
    names = ("memory_layers", "kept_tokens", "reference_tokens")
    write_model(run.lm, finetune_config(recipe), folder, {"memory3": {name: getattr(config, name) for name in names}})
    write_card(folder, run, recipe, {"method": "memory3", **asdict(config)})


TRAINER: Trainer[RetrofitRecipe, RetrofitRun] = Trainer(
    (STAGE, EXPORT),
    lambda recipe: recipe.stages,
    lambda recipe, args, is_first: start_retrofit_run(recipe, args.data, args.out, skip_damaged=args.skip_damaged),
    retrofit_stage,
    {EXPORT: lambda run, args: export_retrofit(run, args.model_folder)},
    start_as_base,
)
