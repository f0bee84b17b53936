"""Trains nano and nano-text: starts their runs, makes their stages, and exports the model with its search head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from remanence.errors import InputError
from remanence.methods.memory3.method import paper
from remanence.train.core import parallel
from remanence.train.core.model import build_model, enable_gradient_checkpointing, whole_model_optimizer
from remanence.train.core.optimizer import ParamGroup
from remanence.train.core.run_folder import begin_stage
from remanence.train.core.shapes import ROPE_THETA, Shape
from remanence.train.core.stages import (
    EXPORT,
    Stage,
    TrainArgs,
    Trainer,
    load_last,
    load_stage,
    require_one_process,
)
from remanence.train.cost.flops import peak_of
from remanence.train.examples.corpora import Corpora, corpus_sizes, load_or_skip
from remanence.train.examples.mixture import Encoder
from remanence.train.examples.tokenizer import generator_texts, train_tokenizer
from remanence.train.export.card import write_card
from remanence.train.export.model import export
from remanence.train.export.search_head import HeadRecipe, train_head
from remanence.train.init.depth_growth import load_model
from remanence.train.init.induction_init import start_with_copying
from remanence.train.init.word_vectors import word_vectors
from remanence.train.memory3.continual import memory_task, reading_model
from remanence.train.memory3.warmup import NanoRun, warmup_task
from remanence.train.recipes.nano import STAGES, NanoRecipe, StageName


def start_run(
    recipe: NanoRecipe,
    data: Path | None,
    folder: Path,
    start: Path | None = None,
    *,
    compiled: bool = False,
    skip_damaged: bool = False,
) -> NanoRun:
    """A run at step 0. The tokenizer in `folder` is used, or trained and saved there.

    `data`: a folder of corpora; None: generated text alone. `start`: a model folder whose weights and tokenizer the run
    begins with. `skip_damaged`: unreadable lines of books are skipped and counted in the log, instead of an InputError.
    """
    device = parallel.start()
    folder.mkdir(parents=True, exist_ok=True)
    corpora = load_or_skip(data, folder, skip_damaged)
    with parallel.first():
        if start is not None:
            PreTrainedTokenizerFast.from_pretrained(start).save_pretrained(folder / "tokenizer")
        encoder = Encoder(load_or_train_tokenizer(recipe, corpora, folder / "tokenizer"))
        vector_VC = None if start else load_or_make_vectors(recipe, corpora, encoder, folder / "vectors")
    model = build_model(recipe.shape, recipe.seed)
    _check_shape(recipe.shape)
    if start is not None:
        load_model(model, start)
    if vector_VC is not None:
        start_with_copying(model, recipe.seed, vector_VC)
    if recipe.checkpointing:
        enable_gradient_checkpointing(model)
    model.to(device)
    groups = _param_groups(model, recipe)
    optimizer, call_with_params = whole_model_optimizer(model, recipe.dtype, groups, recipe.clip_norm)
    return NanoRun(
        folder,
        optimizer,
        recipe.guard,
        call_with_params=call_with_params,
        data_files=corpus_sizes(data),
        peak_flops=peak_of(torch.cuda.get_device_name()) if device.type == "cuda" else None,
        has_start=start is not None,
        recipe=recipe,
        model=model,
        encoder=encoder,
        corpora=corpora,
        device=device,
        compiled=compiled,
    )


def _param_groups(model: LlamaForCausalLM, recipe: NanoRecipe) -> list[ParamGroup]:
    """Muon or AdamW for the matrices of the layers, AdamW for embeddings and norms."""
    parameters = dict(model.named_parameters())
    matrices = tuple(name for name, p in parameters.items() if p.ndim == 2 and "embed" not in name)
    others = tuple(name for name in parameters if name not in matrices)
    return [
        ParamGroup(recipe.matrix_rule, matrices, recipe.matrix_lr, weight_decay=0.01),
        ParamGroup("adamw", others, recipe.other_lr),
    ]


def _check_shape(shape: Shape) -> None:
    """InputError for a shape that the induction heads of the start, or the export, do not support."""
    if not shape.tied or shape.rope_theta != ROPE_THETA or shape.num_kv_heads != shape.num_heads:
        raise InputError(
            "this recipe trains models with tied embeddings, one query head per KV head, and the usual rope_theta",
            f"do not change shape.tied, shape.num_kv_heads and shape.rope_theta ({ROPE_THETA:g})",
        )


def nano_stage(run: NanoRun, name: str, steps: int | None = None) -> Stage:
    """A stage of the recipe, which ends at step `steps` (None: as its phases say)."""
    stage = cast(StageName, name)
    plan = STAGES[stage]
    after, num_steps = plan.after, steps or run.recipe.num_steps_of(plan)

    def begin(resume: bool) -> None:
        has_books = run.corpora.paragraphs and run.corpora.heldout_paragraphs
        if any(phase.books == 1 for phase in run.recipe.phases_of(plan)) and not has_books:
            hint = "give --data with classic_books/train-00.jsonl.gz (or more) and classic_books/valid.jsonl.gz"
            raise InputError("this recipe is trained on books, and there are none", hint)
        if after and not (resume or run.has_start):
            load_stage(run, name, after, f"train --stage {after} first, or give --start FOLDER")

    def task() -> Any:
        return warmup_task(run) if name == "warmup" else memory_task(run, num_steps, stage)

    return Stage(name, num_steps, task, begin)


def export_nano(run: NanoRun, head: HeadRecipe | None = None) -> None:
    """Trains the search head on the model's last stage and writes `export` into the run's folder.

    The last stage is `continual`, or `warmup` if there is no other or the recipe's `stages` name no other.
    """
    begin_stage(run, EXPORT, run.recipe)
    require_one_process("an export")
    model_stages: tuple[StageName, ...] = ("continual", "warmup")
    stage = load_last(run, [name for name in model_stages if name in run.recipe.stages])
    lm = reading_model(run)
    trained = train_head(lm, head or HeadRecipe(), run.corpora, run.recipe.seed)
    recalls = {"recall1": trained.recall1, "recall5": trained.recall5}
    run.log({"stage": "head", "of": stage, "layer": trained.layer, **recalls})
    export(run.folder / "export", run.recipe.shape, run.optimizer.masters, run.encoder.tokenizer, trained)
    write_card(run.folder / "export", run, run.recipe, {"method": "memory3", **asdict(paper(lm))})


def load_or_train_tokenizer(recipe: NanoRecipe, corpora: Corpora, folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(_texts(recipe, corpora), recipe.shape.vocab_size).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def load_or_make_vectors(recipe: NanoRecipe, corpora: Corpora, encoder: Encoder, path: Path) -> Tensor:
    """vector_VC (float32): word vectors of the books and passages; zeros if there are none.

    They are saved as `path` + `.safetensors`. InputError if another recipe's vectors are there.
    """
    file = path.with_suffix(".safetensors")
    if not file.exists():
        texts = [*corpora.paragraphs, *(context.text for context in corpora.contexts)]
        lines = (ids for start in range(0, len(texts), 10_000) for ids in encoder(*texts[start : start + 10_000]))
        vector_VC = word_vectors(lines, len(encoder.tokenizer), recipe.shape.width, recipe.seed)
        save_file({"vector_VC": vector_VC}, file)
    vector_VC = load_file(file)["vector_VC"]
    if vector_VC.shape != (len(encoder.tokenizer), recipe.shape.width):
        raise InputError(
            f"{str(file)!r} holds word vectors of width {vector_VC.shape[1]}, the recipe's width is "
            f"{recipe.shape.width}",
            "use another --out: this folder belongs to another recipe",
        )
    return vector_VC


def _texts(recipe: NanoRecipe, corpora: Corpora) -> Iterator[str]:
    yield from generator_texts(recipe.seed, recipe.tokenizer_groups)
    count = min(recipe.tokenizer_paragraphs, len(corpora.paragraphs))
    yield from Random(recipe.seed).sample(corpora.paragraphs, count)
    for context in corpora.contexts:
        yield from (context.text,) * 3


def _start(recipe: NanoRecipe, args: TrainArgs, is_first: bool) -> NanoRun:
    start = args.start if is_first else None
    return start_run(recipe, args.data, args.out, start, compiled=args.compiled, skip_damaged=args.skip_damaged)


TRAINER: Trainer[NanoRecipe, NanoRun] = Trainer(
    (*STAGES, EXPORT),
    lambda recipe: recipe.stages,
    _start,
    nano_stage,
    {EXPORT: lambda run, args: export_nano(run)},
    can_compile=True,
)
