"""Prepares a run from a recipe and a data folder: tokenizer, corpora, model, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from remanence.errors import InputError
from remanence.methods.memory3.method import paper
from remanence.train import checkpoint, loop, parallel
from remanence.train.card import write_card
from remanence.train.circuits import start_with_copying
from remanence.train.corpora import Corpora, load_or_skip
from remanence.train.cost import peak_of
from remanence.train.export import export
from remanence.train.folder import stage_begins, stage_ends
from remanence.train.growth import grown
from remanence.train.memory import continual, reading_model
from remanence.train.model import build_model, compute_layers_again, to_bfloat16
from remanence.train.optimizer import Group, Optimizer
from remanence.train.plain import ModelRun, warm_up
from remanence.train.recipes.nano import STAGES, Recipe, StageName
from remanence.train.retrieval import HeadRecipe, train_head
from remanence.train.rows import Encoder
from remanence.train.shapes import ROPE_THETA, Shape
from remanence.train.tokenizer import generator_texts, train_tokenizer
from remanence.train.vectors import word_vectors


def start_run(
    recipe: Recipe,
    data: Path | None,
    folder: Path,
    start: Path | None = None,
    *,
    compiled: bool = False,
    skip_damaged: bool = False,
) -> ModelRun:
    """A run at step 0; the tokenizer in `folder` is used again, or trained and kept there.

    `start`: a model folder whose weights and tokenizer the run begins with, instead of new ones. `skip_damaged`: lines
    of books that cannot be read are left out and counted in the log, instead of an InputError.
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
        compute_layers_again(model)
    model.to(device)
    optimizer, within = trained(model, recipe.dtype, _groups(model, recipe), recipe.clip_norm)
    return ModelRun(
        folder,
        optimizer,
        recipe.guard,
        within,
        data,
        peak_flops=peak_of(torch.cuda.get_device_name()) if device.type == "cuda" else None,
        recipe=recipe,
        model=model,
        encoder=encoder,
        corpora=corpora,
        device=device,
        compiled=compiled,
        has_start=start is not None,
    )


def trained(
    model: LlamaForCausalLM, dtype: str, groups: list[Group], clip_norm: float
) -> tuple[Optimizer, Callable[..., Any]]:
    """The optimizer of the model, and what calls that which needs it: one process holds all of it, many their shards.

    One process keeps bfloat16 weights beside float32 masters; shards are float32, and gathered as bfloat16.
    """
    if parallel.size() > 1:
        within = parallel.Sharded(model, dtype)
        return Optimizer(dict(model.named_parameters()), groups, clip_norm), within
    masters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if dtype == "bfloat16":
        to_bfloat16(model)
    optimizer = Optimizer(dict(model.named_parameters()), groups, clip_norm)
    optimizer.load_weights(masters)
    return optimizer, parallel.call


def _groups(model: LlamaForCausalLM, recipe: Recipe) -> list[Group]:
    """Muon or AdamW for the matrices of the layers, AdamW for embeddings and norms."""
    parameters = dict(model.named_parameters())
    matrices = tuple(name for name, p in parameters.items() if p.ndim == 2 and "embed" not in name)
    others = tuple(name for name in parameters if name not in matrices)
    return [
        Group(recipe.matrix_rule, matrices, recipe.matrix_lr, weight_decay=0.01),
        Group("adamw", others, recipe.other_lr),
    ]


def _check_shape(shape: Shape) -> None:
    """What the start with copying heads, and what is written at the end, are made for."""
    if not shape.tied or shape.rope_theta != ROPE_THETA or shape.num_kv_heads != shape.num_heads:
        raise InputError(
            "this recipe trains models with tied embeddings, one query head per KV head, and the usual rope_theta",
            f"leave shape.tied, shape.num_kv_heads and shape.rope_theta ({ROPE_THETA:g}) as they are",
        )


def load_model(model: LlamaForCausalLM, folder: Path) -> None:
    """The weights of a model folder, grown to the recipe's number of layers. InputError where they do not fit."""
    try:
        state = grown(load_file(folder / "model.safetensors"), model.config.num_hidden_layers)
        found = model.load_state_dict(state, strict=False)
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        others = {*found.missing_keys, *found.unexpected_keys} - tied
        if others:
            raise ValueError(f"{min(others)} is not in both")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        problem = f"cannot start with the weights of {str(folder)!r}: {str(error).splitlines()[0]}"
        raise InputError(
            problem, "give one of this recipe's width and vocabulary, with as many layers or fewer"
        ) from error


def run_stage(run: ModelRun, stage: StageName, steps: int | None, again: bool) -> None:
    """A stage from its beginning, or with `again` from its last checkpoint.

    `steps` None: as many as the recipe's phases have. "export": see `finish`.
    """
    if stage == "export":
        stage_begins(run, stage, run.recipe)
        finish(run)
        return
    after, phases = STAGES[stage].after, run.recipe.phases_of(STAGES[stage])
    if any(phase.books == 1 for phase in phases) and not (run.corpora.paragraphs and run.corpora.kept_paragraphs):
        hint = "give --data with classic_books/train-00.jsonl.gz (or more) and classic_books/valid.jsonl.gz"
        raise InputError("this recipe is trained on books, and there are none", hint)
    num_steps = steps or run.recipe.num_steps_of(STAGES[stage])
    if not again and after and not run.has_start:
        if not checkpoint.exists(run.folder / after):
            problem = f"stage {stage} begins with the weights of {after}, which {str(run.folder)!r} does not hold"
            raise InputError(problem, f"train --stage {after} first, or give --start FOLDER")
        loop.load_weights(run, after)
    task = warm_up(run) if stage == "warmup" else continual(run, num_steps, stage)
    if again:
        loop.resume(run, task)
    stage_begins(run, stage, run.recipe, again=again)
    loop.train(run, task, num_steps)
    stage_ends(run, stage)


def finish(run: ModelRun, head: HeadRecipe | None = None) -> None:
    """Trains the search head on the weights of the model's last stage and writes `folder/export`; in one process.

    That is `continual`, or `warmup` where there is no other or the recipe's `stages` name no other.
    """
    if parallel.size() > 1:
        raise InputError("a model is exported by one process", "start `--stage export` without torchrun")
    stage = _last_stage(run)
    loop.load_weights(run, stage)
    lm = reading_model(run)
    found = train_head(lm, head or HeadRecipe(), run.corpora, run.recipe.seed)
    run.log({"stage": "head", "of": stage, "layer": found.layer, "recall1": found.recall1, "recall5": found.recall5})
    export(run.folder / "export", run.recipe.shape, run.optimizer.masters, run.encoder.tokenizer, found)
    write_card(run.folder / "export", run, run.recipe, {"method": "memory3", **asdict(paper(lm))})


def _last_stage(run: ModelRun) -> StageName:
    """Of the model's two stages; the others are what they are compared with."""
    mine: tuple[StageName, ...] = ("continual", "warmup")
    for stage in mine:
        if stage in run.recipe.stages and checkpoint.exists(run.folder / stage):
            return stage
    problem = f"{str(run.folder)!r} holds no checkpoint of {' or '.join(mine)}"
    raise InputError(problem, "train one of them first, or name the folder with --out")


def load_or_train_tokenizer(recipe: Recipe, corpora: Corpora, folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(_texts(recipe, corpora), recipe.shape.vocab_size).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def load_or_make_vectors(recipe: Recipe, corpora: Corpora, encoder: Encoder, path: Path) -> Tensor:
    """Word vectors of the books and passages at hand; all zeros where there are none."""
    file = path.with_suffix(".safetensors")
    if not file.exists():
        texts = [*corpora.paragraphs, *(context.text for context in corpora.contexts)]
        lines = (ids for start in range(0, len(texts), 10_000) for ids in encoder(*texts[start : start + 10_000]))
        vector_VC = word_vectors(lines, len(encoder.tokenizer), recipe.shape.width, recipe.seed)
        save_file({"vector_VC": vector_VC}, file)
    vector_VC = load_file(file)["vector_VC"]
    if vector_VC.shape != (len(encoder.tokenizer), recipe.shape.width):
        raise InputError(
            f"{str(file)!r} holds word vectors of width {vector_VC.shape[1]}, this recipe's is {recipe.shape.width}",
            "give another --out: this folder is another recipe's",
        )
    return vector_VC


def _texts(recipe: Recipe, corpora: Corpora) -> Iterator[str]:
    yield from generator_texts(recipe.seed, recipe.tokenizer_groups)
    count = min(recipe.tokenizer_paragraphs, len(corpora.paragraphs))
    yield from Random(recipe.seed).sample(corpora.paragraphs, count)
    for context in corpora.contexts:
        yield from (context.text,) * 3
