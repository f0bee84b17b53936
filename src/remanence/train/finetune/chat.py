"""SFT and DPO with memories (Memory³ §6): only the tokens of answers have a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any
from typing import cast as typed

import torch
from torch import Tensor
from torch.nn import functional

from remanence import methods
from remanence.data.unknown import UNKNOWN
from remanence.errors import InputError
from remanence.methods.memory3.layout import Group
from remanence.methods.memory3.method import Memory3, Memory3Config
from remanence.train.core import checkpoint, parallel
from remanence.train.core.loop import Task
from remanence.train.core.losses import exact_answers
from remanence.train.core.model import cast
from remanence.train.core.schedule import rate_at
from remanence.train.core.stages import (
    EXPORT,
    Stage,
    Trainer,
    load_last,
    load_stage,
    require_one_process,
    start_as_base,
)
from remanence.train.examples.chat import (
    ChatBatch,
    ChatExamples,
    answer_positions,
    conversation_examples,
    draw_chat_examples,
    pack_chat,
)
from remanence.train.examples.conversations import Conversation, draw_conversations, read_conversations
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
from remanence.train.recipes.chat import CHAT_STAGES, ChatRecipe, ChatStage

RISE = 0.1
"""Share of the steps over which the learning rate rises (Memory³ §6.1)."""
EVAL_GROUPS = 40


@dataclass(kw_only=True)
class ChatRun(FinetuneRun):
    """A run of SFT or DPO. `conversations`: those of a file; empty: generated questions are used."""

    recipe: ChatRecipe
    conversations: list[Conversation] = field(default_factory=list)


# -- losses ----------------------------------------------------------------------------------


def logprobs(run: ChatRun, batch: ChatBatch, kept_tokens: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(logit_NV, index_N, logp_N float32) of the N tokens of all answers. No gradient reaches the writing.

    `index_N` are the positions that predict them, among the flattened B·T.
    """
    index_N = answer_positions(batch)
    method = Memory3(replace(run.config, kept_tokens=kept_tokens))
    with cast(run.lm.device, run.recipe):
        prefix = None
        if batch.references:
            with torch.no_grad():
                memories = method.write(run.lm, batch.references)
            groups = [[Group(0, tuple(memories[i] for i in row))] for row in batch.rows]
            prefix = method.prefix(run.lm, groups, [batch.ids_BT.shape[1]] * len(groups))
        logit_NV = selected_logits(run.lm, batch.ids_BT, index_N, prefix, run.lm.reads_as)
    logp_NV = logit_NV.float().log_softmax(-1)
    return logit_NV, index_N, logp_NV.gather(1, batch.ids_BT.flatten()[index_N + 1][:, None]).squeeze(1)


def sft_task(run: ChatRun, num_steps: int) -> Task:
    """Supervised fine-tuning: nats per token of answers."""

    def loss(number: int) -> tuple[Tensor, int]:
        batch, kept_tokens = _batch(run, "sft", number)
        nats = -logprobs(run, batch, kept_tokens)[2].mean()
        run.count(loss_answer=float(nats.detach()))
        return nats, batch.ids_BT.numel()

    return _task(run, "sft", loss, num_steps)


def dpo_task(run: ChatRun, num_steps: int) -> Task:
    """DPO (Rafailov et al., 2023): both answers are read with the same memories.

    The reference is the model with the weights that it has now.
    """
    trained = dict(run.optimizer.model)
    reference = {name: p.detach().clone() for name, p in trained.items()}

    def loss(number: int) -> tuple[Tensor, int]:
        batch, kept_tokens = _batch(run, "dpo", number)
        run.lm.drop_constants()  # an evaluation has cached those of other weights
        with torch.no_grad(), swapped_weights(trained, reference):
            reference_B = sum_by_row(batch, *logprobs(run, batch, kept_tokens)[1:])
        run.lm.drop_constants()
        _, index_N, logp_N = logprobs(run, batch, kept_tokens)
        gain_B = sum_by_row(batch, index_N, logp_N) - reference_B
        half = len(gain_B) // 2
        margin_R = run.recipe.beta * (gain_B[:half] - gain_B[half:])
        chosen_N = index_N < half * batch.ids_BT.shape[1]
        nats = -logp_N[chosen_N].mean()
        detached_R = margin_R.detach()
        preferred = float((detached_R > 0).float().mean())
        run.count(loss_answer=float(nats.detach()), margin=float(detached_R.mean()), preferred=preferred)
        return dpo_loss(margin_R) + run.recipe.nll_weight * nats, batch.ids_BT.numel()

    return _task(run, "dpo", loss, num_steps)


def dpo_loss(margin_R: Tensor) -> Tensor:
    """Mean of -log σ(margin); a margin is β times (gain of the chosen answer - gain of the rejected answer)."""
    return -functional.logsigmoid(margin_R).mean()


def sum_by_row(batch: ChatBatch, index_N: Tensor, logp_N: Tensor) -> Tensor:
    """logp_B: the log-probability of each row's answer."""
    B, T = batch.ids_BT.shape
    return logp_N.new_zeros(B).index_add_(0, index_N // T, logp_N)


def _batch(run: ChatRun, stage: ChatStage, number: int) -> tuple[ChatBatch, int | None]:
    """(batch `number`, the number of tokens that its memories keep)."""
    phase = run.recipe.phase_of(stage)
    as_text = bool(phase.text_every) and number % phase.text_every == phase.text_every - 1
    if run.conversations:
        count = phase.groups * phase.questions
        examples = conversation_examples(draw_conversations(run.conversations, run.recipe.seed, number, count))
    else:
        if as_text:  # such rows are several times as long
            phase = replace(phase, groups=-(-phase.groups // 3))
        rng = Random(f"{run.recipe.seed} {stage} {number}")
        examples = draw_chat_examples(rng, phase, run.corpora, run.encoder)
    batch = _pack(run, examples, as_text=as_text, rejected=stage == "dpo")
    return batch, kept_tokens_at(run.recipe.kept_tokens, number)


def _pack(run: ChatRun, examples: ChatExamples, *, as_text: bool = False, rejected: bool = False) -> ChatBatch:
    return pack_chat(
        run.lm,
        examples,
        run.encoder,
        run.recipe.row_tokens,
        as_text=as_text,
        rejected=rejected,
        reference_tokens=run.config.reference_tokens,
    )


def _task(run: ChatRun, stage: ChatStage, loss: Callable[[int], tuple[Tensor, int]], num_steps: int) -> Task:
    run.lm.model.train()
    recipe = run.recipe
    lr = recipe.phase_of(stage).lr

    def rate(step: int) -> float:
        return lr * rate_at("cosine", step, num_steps, max(1, round(RISE * num_steps)), 1.0)

    def ends(step: int) -> dict[str, Any]:
        return {} if step and step % recipe.eval_every == 0 else evaluate(run)

    return Task(
        stage,
        loss,
        rate,
        lambda step: evaluate(run),
        recipe.eval_every,
        ends,
        recipe=recipe,
        parts=recipe.phase_of(stage).parts,
        oom_hint=f"its groups (--set {stage}.groups=4)",
    )


@torch.no_grad()
def evaluate(run: ChatRun) -> dict[str, float]:
    """Shares of exact answers on held-out facts, for each of `kept_tokens`.

    `answered_*`: the fact is in a memory. `abstained_*`: it is in none, and the right answer is "I do not know.".
    """
    run.lm.model.eval()
    run.lm.drop_constants()
    phase = replace(run.recipe.sft, groups=EVAL_GROUPS, absent=0.5, empty=0.0)
    rng = Random(f"{run.recipe.seed} chat")
    examples = draw_chat_examples(rng, phase, run.corpora, run.encoder, "heldout")
    figures = {}
    for kept_tokens in run.recipe.kept_tokens:
        for name, is_absent in (("answered", False), ("abstained", True)):
            questions = [each for each in examples.questions if (each.answer == UNKNOWN) == is_absent]
            batch = _pack(run, replace(examples, questions=questions))
            logit_NV, index_N, _ = logprobs(run, batch, kept_tokens)
            whole = exact_answers(logit_NV, index_N, batch.ids_BT, batch.kind_BT)[1]
            figures[f"{name}_{'all' if kept_tokens is None else kept_tokens}"] = round(whole, 3)
    run.lm.drop_constants()
    run.lm.model.train()
    return figures


# -- runs and stages -------------------------------------------------------------------------


def start_chat_run(recipe: ChatRecipe, data: Path | None, folder: Path, *, skip_damaged: bool = False) -> ChatRun:
    """A run at step 0. Memory is read as the base reads it, but only once per prompt."""
    parallel.start()
    require_one_process("a run of SFT or DPO")
    conversations = read_conversations(Path(recipe.conversations)) if recipe.conversations else []
    lm = load_base(recipe.base)
    config = methods.load("memory3", lm).config
    assert isinstance(config, Memory3Config)
    config = replace(config, refresh_tokens=None)
    return start_finetune_run(ChatRun, recipe, lm, config, data, folder, skip_damaged, conversations=conversations)


def chat_stage(run: ChatRun, name: str, steps: int | None = None) -> Stage:
    """SFT begins with the base. DPO begins with SFT's weights; with the base only if the recipe has no SFT."""
    stage = typed(ChatStage, name)
    make = {"sft": sft_task, "dpo": dpo_task}[stage]
    num_steps = steps or run.recipe.phase_of(stage).num_steps

    def begin(resume: bool) -> None:
        if stage == "sft":
            if not resume:
                checkpoint.clear(run.folder / "dpo")  # it began with other weights
            return
        if any(one.rejected is None for one in run.conversations):
            raise InputError("DPO needs a rejected answer for each conversation", 'write "rejected" on each line')
        if "sft" in run.recipe.stages or checkpoint.exists(run.folder / "sft"):
            load_stage(run, "dpo", "sft", "train --stage sft first, or train memory3/dpo --start MODEL")

    return Stage(stage, num_steps, lambda: make(run, num_steps), begin)


def export_chat(run: ChatRun, folder: Path) -> None:
    """Writes a folder that `load` reads, with the weights of the recipe's last stage that was trained."""
    load_last(run, [stage for stage in ("dpo", "sft") if stage in run.recipe.stages])
    settings = {name: value for name, value in run.lm.settings.items() if name != "adapter"}
    write_model(run.lm, finetune_config(run.recipe), folder, settings)
    write_card(folder, run, run.recipe, {"method": "memory3", **asdict(run.config)})


TRAINER: Trainer[ChatRecipe, ChatRun] = Trainer(
    (*CHAT_STAGES, EXPORT),
    lambda recipe: recipe.stages,
    lambda recipe, args, is_first: start_chat_run(recipe, args.data, args.out, skip_damaged=args.skip_damaged),
    chat_stage,
    {EXPORT: lambda run, args: export_chat(run, args.model_folder)},
    start_as_base,
)
