"""Prepares and makes a run on stored sequences: a tokenizer and a model that fit them, its stage, what comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from remanence.data.sequences import ABOUT, SequenceFolder
from remanence.errors import InputError
from remanence.lm.folders import SETTINGS
from remanence.train import checkpoint, loop, parallel
from remanence.train.build_sequences import KEPT
from remanence.train.card import CARD, described_stage, write_card
from remanence.train.export import export
from remanence.train.folder import stage_begins, stage_ends
from remanence.train.model import build_model, compute_layers_again
from remanence.train.optimizer import Group
from remanence.train.recipes.sequences import SequenceRecipe
from remanence.train.start import load_model, trained
from remanence.train.text_stages import SequenceRun, memory_config, running_text
from remanence.train.tokenizer import fingerprint, load_tokenizer

STAGES = ("warmup", "continual")
"""Of the paper: what they end with is the model."""


def start_sequence_run(
    recipe: SequenceRecipe, data: str | Path, folder: Path, start: Path | None = None
) -> SequenceRun:
    """A run at step 0 on the sequences of `data`, a folder or a URI; their tokenizer is kept in `folder`.

    `start`: a model folder whose weights the run begins with; its tokenizer must be that of the sequences. InputError
    where recipe, sequences and model do not fit each other.
    """
    device = parallel.start()
    folder.mkdir(parents=True, exist_ok=True)
    stored = SequenceFolder(data)
    _check(recipe, stored)
    with parallel.first():
        if not (folder / "tokenizer").exists():
            stored.copy("tokenizer", folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    for name in (folder / "tokenizer", start):
        if name is not None and fingerprint(load_tokenizer(name)) != stored.about.tokenizer:
            raise InputError(
                f"the sequences in {str(data)!r} are of another tokenizer than {str(name)!r}",
                "make them with that --model, or give another --out",
            )
    model = build_model(recipe.shape, recipe.seed)
    model.config.update({f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")})
    narrow_outputs(model)
    if start is not None:
        load_model(model, start)
    if recipe.checkpointing:
        compute_layers_again(model)
    model.to(device)
    optimizer, within = trained(model, recipe.dtype, _groups(recipe, dict(model.named_parameters())), recipe.clip_norm)
    return SequenceRun(
        folder,
        optimizer,
        recipe.guard,
        within,
        recipe=recipe,
        model=model,
        tokenizer=tokenizer,
        device=device,
        stored=stored,
        kept=_kept(recipe, str(data), stored),
        has_start=start is not None,
    )


def _check(recipe: SequenceRecipe, stored: SequenceFolder) -> None:
    about = stored.about
    for field, wanted, found in (
        ("sequence_tokens", recipe.sequence_tokens, about.sequence_tokens),
        ("memory.chunk_tokens", recipe.memory.chunk_tokens, about.chunk_tokens),
        ("memory.reference_tokens", recipe.memory.reference_tokens, about.reference_tokens),
    ):
        if wanted != found:
            raise InputError(
                f"the sequences in {stored.place!r} have {field} {found}, the recipe has {wanted}",
                f"set {field}={found}, or make others with `remanence data sequences`",
            )
    if about.vocab_size > recipe.shape.vocab_size:
        raise InputError(
            f"the sequences' tokenizer has {about.vocab_size} entries, the model {recipe.shape.vocab_size}",
            f"set shape.vocab_size={about.vocab_size} or more",
        )


def _kept(recipe: SequenceRecipe, data: str, stored: SequenceFolder) -> SequenceFolder | None:
    """What is kept for evaluation, where `data` has such a part."""
    if not stored.has(f"{KEPT}/{ABOUT}"):
        return None
    kept = SequenceFolder(f"{data.rstrip('/')}/{KEPT}", stored.about.tokenizer)
    _check(recipe, kept)
    return kept


@torch.no_grad()
def narrow_outputs(model: Any) -> None:
    """What a layer adds to the stream starts smaller by the root of twice their number (§5 is silent; inferred)."""
    for layer in model.model.layers:
        for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            matrix.mul_((2 * len(model.model.layers)) ** -0.5)


def _groups(recipe: SequenceRecipe, parameters: Mapping[str, nn.Parameter]) -> list[Group]:
    """Matrices of layers by the recipe's rule, embeddings by AdamW, both decaying; norms do not decay."""
    matrices = tuple(name for name, p in parameters.items() if p.ndim == 2)
    inner = tuple(name for name in matrices if ".layers." in name)
    outer = tuple(name for name in matrices if name not in inner)
    norms = tuple(name for name in parameters if name not in matrices)
    return [
        Group(recipe.matrix_rule, inner, recipe.lr, recipe.weight_decay, recipe.betas),
        Group("adamw", outer, recipe.lr, recipe.weight_decay, recipe.betas),
        Group("adamw", norms, recipe.lr, 0.0, recipe.betas),
    ]


def run_sequences(run: SequenceRun, steps: int | None, again: bool) -> None:
    """The recipe's stage from its beginning, or with `again` from its last checkpoint, until its end or `steps`."""
    recipe, after = run.recipe, run.recipe.after
    if not again and after and not run.has_start:
        if not checkpoint.exists(run.folder / after):
            problem = f"{recipe.stage} begins with the weights of {after}, which {str(run.folder)!r} does not hold"
            raise InputError(problem, f"train memory3/{after} into the same --out first, or give --start FOLDER")
        loop.load_weights(run, after)
    task = running_text(run)
    if again:
        loop.resume(run, task)
    stage_begins(run, recipe.stage, recipe, again=again, files=run.stored.about.sizes)
    loop.train(run, task, min(recipe.num_steps, steps or recipe.num_steps))
    stage_ends(run, recipe.stage)


def export_sequences(run: SequenceRun) -> None:
    """A model that `--model FOLDER` loads, with its card, of the stage's last checkpoint; by one process.

    `folder/export` of the paper's two stages, `folder/export-STAGE` of any other: a control is not what comes out.
    """
    if parallel.size() > 1:
        raise InputError("a model is exported by one process", "start `--stage export` without torchrun")
    stage = run.recipe.stage
    loop.load_weights(run, stage)
    out = run.folder / ("export" if stage in STAGES else f"export-{stage}")
    export(out, run.recipe.shape, run.optimizer.masters, run.tokenizer, None, stop=())
    settings = {"memory3": {**vars(memory_config(run.recipe))}}
    (out / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
    if described_stage(out) not in (None, stage):
        (out / CARD).unlink()  # it tells of weights that are no longer there
    write_card(out, run, run.recipe, {"method": "memory3", **settings["memory3"]})
    run.log({"step": run.step, "stage": "export", "of": stage})
