"""The stages of M+: how a run starts, its task, its evaluation, and the adapter folder that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from remanence.errors import InputError
from remanence.lm import attention
from remanence.lm.folders import LATENT, SETTINGS
from remanence.lm.lm import LM
from remanence.lm.load import load
from remanence.lm.lora import ROLES, add_roles, role_parameters, save_adapter
from remanence.methods.mplus.method import MPlus, MPlusConfig
from remanence.methods.mplus.pool import Pool
from remanence.train.core import checkpoint, loop, parallel
from remanence.train.core.attention_shares import memory_shares
from remanence.train.core.loop import Task
from remanence.train.core.losses import targets
from remanence.train.core.model import cast, use_fast_attention
from remanence.train.core.optimizer import Optimizer
from remanence.train.core.schedule import phase_at, rate_at
from remanence.train.core.stages import (
    EXPORT,
    Stage,
    TrainArgs,
    Trainer,
    load_stage,
    require_one_process,
    sample_interval,
    start_as_base,
)
from remanence.train.examples.corpora import corpus_sizes, load_or_skip
from remanence.train.examples.documents import MPlusDocument, gather_sentences, question_sentences
from remanence.train.examples.mixture import Encoder, Example, facts_example
from remanence.train.export.card import write_card
from remanence.train.memory3.samples import NextLogits, next_logits, question_ids, sample_answers
from remanence.train.mplus import retriever
from remanence.train.mplus.projector_init import match_words
from remanence.train.mplus.run import MPlusRun, param_groups, restore, state, trained_parameters
from remanence.train.mplus.steps import read_sentences, step_loss
from remanence.train.recipes.nano import NanoPhase
from remanence.train.recipes.nano_mplus import MPlusRecipe

RETRIEVERS = "retrievers"

# -- the run ---------------------------------------------------------------------------------


def start_mplus_run(
    recipe: MPlusRecipe, base: str, data: Path | None, folder: Path, *, skip_damaged: bool = False
) -> MPlusRun:
    """A run at step 0. The weights of `base` are frozen, in the recipe's dtype; what is trained is float32."""
    parallel.start()
    require_one_process("a run of M+, which has one pool,")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    lm = _load_with_roles(recipe, base)
    method = MPlus(MPlusConfig(**recipe.method, capacity_rows=recipe.kept_rows, merge_writes=16))
    torch.manual_seed(recipe.seed)
    method.modules(lm).float()
    trained = trained_parameters(lm, method)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = Optimizer(trained, param_groups(trained, recipe), recipe.clip_norm)
    pool = method.fresh(lm, recipe.seed)
    pool_LNC = torch.randn_like(pool.row_LNC, dtype=torch.float32) * 0.5
    run = MPlusRun(
        folder,
        optimizer,
        recipe.guard,
        data_files=corpus_sizes(data),
        recipe=recipe,
        lm=lm,
        method=method,
        encoder=Encoder(lm.tokenizer),
        corpora=load_or_skip(data, folder, skip_damaged),
        pool=replace(pool, row_LNC=pool_LNC),
    )
    if recipe.projector_documents:
        match_words(run, recipe.projector_documents)
    return run


def _load_with_roles(recipe: MPlusRecipe, base: str) -> LM:
    lm = load(base)
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)
        if recipe.dtype == "bfloat16":
            parameter.data = parameter.data.bfloat16()
    add_roles(lm.model, recipe.lora)
    for parameter in role_parameters(lm.model):
        parameter.data = parameter.data.float()
    use_fast_attention(lm.model)
    return lm


def begin_after(run: MPlusRun, stage: str) -> None:
    """Loads what another stage in the run's folder ended with: weights, pool, long-term memory, documents.

    If that pool is larger, its newest rows are used (inferred: the paper's third stage has ten blocks fewer).
    InputError if there is no such checkpoint, or its pool is smaller.
    """
    saved = load_stage(run, run.recipe.stage, stage, "train it first")
    restore(run, saved.tensors, saved.progress["values"])
    rows = run.method.config.pool_rows
    if run.pool.row_LNC.shape[1] < rows:
        raise InputError(
            f"the pool of {stage} has {run.pool.row_LNC.shape[1]} rows, {run.recipe.stage} needs {rows}",
            "give both the same write_rows x pool_blocks",
        )
    run.pool = replace(run.pool, row_LNC=run.pool.row_LNC[:, -rows:], born_LN=run.pool.born_LN[:, -rows:])


# -- the task --------------------------------------------------------------------------------


def mplus_task(run: MPlusRun, num_steps: int) -> Task:
    """The task of M+. `num_steps`: where the learning rate's schedule ends."""
    run.lm.model.train()
    recipe = run.recipe

    def loss(number: int) -> tuple[Tensor, int]:
        _, phase = phase_at(run.recipe.stages, number)
        return step_loss(run, phase, Random(f"{run.recipe.seed} {run.recipe.stage} {number}"))

    def rate(step: int) -> float:
        return rate_at(recipe.schedule, step, num_steps, recipe.warmup_steps, recipe.decay_share)

    def figures(step: int) -> dict[str, Any]:
        return {"phase": phase_at(run.recipe.stages, step - 1)[0] + 1, **evaluate(run)}

    def restore_run(tensors: Mapping[str, Tensor], values: Any) -> None:
        restore(run, tensors, values)

    return Task(
        recipe.stage,
        loss,
        rate,
        figures,
        recipe.eval_every,
        sample=lambda step: sample_with_pool(run),
        sample_every=sample_interval(recipe),
        recipe=recipe,
        state=lambda: state(run),
        restore=restore_run,
        oom_hint="a phase's documents or chunks (--set stages.0.documents=8)",
    )


@torch.no_grad()
def evaluate(run: MPlusRun, rows: int = 24) -> dict[str, float]:
    """Exact match on held-out facts: right after each was written ("fresh"), and after other text ("later").

    The other text is the other facts and twice as many paragraphs. `share_*`: the attention to pool and long-term
    memory, where the later answers are read.
    """
    run.lm.model.eval()
    rng, limit = Random(f"{run.recipe.seed} heldout"), run.method.config.chunk_tokens
    documents = []
    while len(documents) < rows:
        example = facts_example(rng, NanoPhase(0, 1, 0, (1, 1), 3), "heldout")
        chunks = [ids[:limit] for ids in run.encoder(*example.references)]
        documents.append(MPlusDocument(chunks, question_sentences(example, run.encoder)))
    start = replace(run.method.fresh(run.lm), row_LNC=run.pool.row_LNC)
    pool, single = start, []
    for document in documents:
        single.append(_write(run, start, document.chunks[0]))
        pool = _write(run, pool, document.chunks[0])
    for text in (run.corpora.paragraphs or ["no books at hand"])[100 : 100 + 2 * rows]:
        pool = _write(run, pool, run.encoder(text)[0][:limit])
    sentences = gather_sentences(rng, documents, 2 * rows, run.encoder.pad)
    figures, watch = {}, attention.AttentionCapture(frozenset())
    for name, pools in (("fresh", [single[d] for d in sentences.of_Q.tolist()]), ("later", [pool])):
        prefix: Any = run.method.prefix(run.lm, pools, sentences.asked_QT.long())
        watch = attention.AttentionCapture(frozenset(range(run.lm.dims.num_layers)))
        losses, token, whole = read_sentences(run, prefix, sentences, watch)
        figures |= {f"{name}_exact": round(whole, 3), f"{name}_token": round(token, 3)}
        figures |= {f"{name}_loss": round(losses.answer.item(), 3)}
    answer_N = targets(sentences.batch.kind_BT, 10**6)
    run.lm.model.train()
    return figures | memory_shares(watch.seen, sentences.batch.ids_BT.shape[1], 1, answer_N)


@torch.no_grad()
def sample_with_pool(run: MPlusRun) -> dict[str, Any]:
    """Answers to questions that read a pool to which three passages were just written."""
    lm, method = run.lm, run.method
    lm.model.eval()
    start = replace(method.fresh(lm), row_LNC=run.pool.row_LNC)

    def reader(example: Example) -> tuple[list[int], NextLogits]:
        pool, num_asked = start, len(question_ids(run.encoder, example))
        for ids in run.encoder(*example.references):
            pool = _write(run, pool, ids[: method.config.chunk_tokens])

        def logits(ids: list[int]) -> Tensor:
            asked_BT = (torch.arange(len(ids)) < num_asked).long()[None].to(lm.device)
            return next_logits(lm.model, ids, run.recipe, method.prefix(lm, [pool], asked_BT), role="read")

        return [], logits

    record = sample_answers(run.recipe.seed, run.encoder, reader)
    lm.model.train()
    return record


def _write(run: MPlusRun, pool: Pool, ids: list[int]) -> Pool:
    with cast(run.lm.device, run.recipe):
        return run.method.add(run.lm, pool, ids)


# -- the stages ------------------------------------------------------------------------------


def mplus_stage(run: MPlusRun, name: str, steps: int | None = None) -> Stage:
    """The recipe's only stage. It begins with what the recipe's stage `after` ended with."""
    recipe, after = run.recipe, run.recipe.after

    def begin(resume: bool) -> None:
        if after and not resume:
            begin_after(run, after)

    num_steps = min(recipe.num_steps, steps or recipe.num_steps)
    return Stage(recipe.stage, num_steps, lambda: mplus_task(run, recipe.num_steps), begin)


def export_mplus(run: MPlusRun, folder: Path, base: str) -> int:
    """Writes an adapter folder that `load` reads (PEFT's files and `latent.safetensors`); returns its size in bytes.

    It holds both adapters, projectors, first vectors and a first pool, in bfloat16.
    """
    for role in ROLES:
        save_adapter(run.lm.model, role, folder / role, run.recipe.lora, base, torch.bfloat16)
    modules = {**run.method.modules(run.lm).state_dict(), "pool_LNC": run.pool.row_LNC}
    tensors = {name: tensor.detach().cpu().bfloat16().contiguous() for name, tensor in modules.items()}
    save_file(tensors, folder / LATENT, metadata={"format": "pt"})
    mplus = run.recipe.method | run.recipe.reading
    settings = {"adapter": {"base": base}, "mplus": mplus}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_card(folder, run, run.recipe, {"method": "mplus", "base": base, **mplus}, ("latent-memory", "adapter"))
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _resume_trained(run: MPlusRun) -> None:
    """Loads the last checkpoint, unless the run has just been trained."""
    if run.step == 0:
        loop.resume(run, mplus_task(run, run.recipe.num_steps))


def _export(run: MPlusRun, args: TrainArgs) -> None:
    _resume_trained(run)
    num_bytes = export_mplus(run, args.model_folder, run.recipe.base)
    run.log({"step": run.step, "stage": EXPORT, "bytes": num_bytes})


def _train_retrievers(run: MPlusRun, args: TrainArgs) -> None:
    """Other projectors for the trained adapter, one file for each loss."""
    _resume_trained(run)
    folder = args.model_folder
    folder.mkdir(exist_ok=True)
    num_steps = retriever.STEPS if args.steps is None else args.steps
    for loss in retriever.LOSSES:
        retriever.train_retriever(run, loss, num_steps, folder / f"retriever-{loss}.safetensors")


def _prepare(recipe: MPlusRecipe, args: TrainArgs) -> MPlusRecipe:
    if args.stage != "all" and not checkpoint.exists(args.out / recipe.stage):
        raise InputError(f"{str(args.out)!r} holds no checkpoint", "train first, or name the folder with --out")
    return start_as_base(recipe, args)


TRAINER: Trainer[MPlusRecipe, MPlusRun] = Trainer(
    (EXPORT, RETRIEVERS),
    lambda recipe: (recipe.stage, EXPORT),
    lambda recipe, args, is_first: start_mplus_run(
        recipe, recipe.base, args.data, args.out, skip_damaged=args.skip_damaged
    ),
    mplus_stage,
    {EXPORT: _export, RETRIEVERS: _train_retrievers},
    _prepare,
    shares_run=True,
)
