"""Memory³ on running text (§3.6, §5): the loss of a batch of sequences, the stage that trains on it, and its export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from remanence.data.sequences import ABOUT, SequenceFolder
from remanence.errors import InputError
from remanence.lm.folders import SETTINGS
from remanence.lm.lm import LM
from remanence.methods.memory3.method import Memory3, Memory3Config
from remanence.train.core import loop, parallel
from remanence.train.core.loop import Run, Task
from remanence.train.core.model import (
    build_model,
    cast,
    enable_gradient_checkpointing,
    use_fast_attention,
    whole_model_optimizer,
)
from remanence.train.core.optimizer import ParamGroup
from remanence.train.core.parallel import average, mean
from remanence.train.core.schedule import rate_at
from remanence.train.core.stages import EXPORT, Stage, TrainArgs, Trainer, load_stage, require_one_process
from remanence.train.examples.build_sequences import VALIDATION
from remanence.train.examples.sequences import Loader, Sequences
from remanence.train.examples.tokenizer import fingerprint, load_tokenizer
from remanence.train.export.card import CARD, described_stage, write_card
from remanence.train.export.model import export
from remanence.train.init.depth_growth import load_model
from remanence.train.recipes.sequences import SequenceRecipe

EVAL_BATCH = 8
"""Sequences per forward pass of an evaluation."""
MODEL_STAGES = ("warmup", "continual")
"""Stages of the paper: the model is what they end with."""


@dataclass(kw_only=True)
class SequenceRun(Run):
    """A run on stored sequences; `heldout`: those that only evaluations read (None: there are none)."""

    recipe: SequenceRecipe
    model: Any
    tokenizer: Any
    device: torch.device
    stored: SequenceFolder
    heldout: SequenceFolder | None = None


# -- a batch ---------------------------------------------------------------------------------


def sequence_loss(lm: LM, batch: Sequences, method: Memory3 | None = None, *, writes: bool = True) -> Tensor:
    """Scalar loss: nats per token of the text. References carry no loss.

    With `method` the references are written in one pass up to the last memory layer, and each chunk reads its own and
    those of the chunks before it. `writes` False: no gradient reaches the writing (the paper does not say; its time
    per step suggests a gradient). InputError if a sequence does not have one reference per chunk. Source: Memory³ §3.6.
    """
    prefix, T = None, batch.ids_BT.shape[1]
    positions_T = torch.arange(T, device=lm.device)
    if method is not None:
        prefix = _prefix(lm, batch, method, writes)
        positions_T = positions_T + prefix.offset_tokens
    body: Any = lm.model.model
    hidden_BTC = body(batch.ids_BT, position_ids=positions_T[None], use_cache=False, memory=prefix).last_hidden_state
    logits_BTV = lm.model.lm_head(hidden_BTC[:, :-1])
    return average(
        functional.cross_entropy(logits_BTV.flatten(0, 1).float(), batch.ids_BT[:, 1:].flatten(), reduction="none")
    )


def _prefix(lm: LM, batch: Sequences, method: Memory3, writes: bool) -> Any:
    T, size = batch.ids_BT.shape[1], method.config.chunk_tokens
    odd = [len(row) for row in batch.references if len(row) * size != T]
    if odd or not batch.references:
        raise InputError(
            f"a sequence of {T} tokens has {odd[0] if odd else 0} references",
            f"give one for each of its chunks of {size} tokens",
        )
    with torch.set_grad_enabled(writes and torch.is_grad_enabled()):
        memories = iter(method.write(lm, [ids for row in batch.references for ids in row]))
    rows = [[next(memories) for _ in row] for row in batch.references]
    return method.shared_prefix(lm, rows, batch.ids_BT.shape[1])


# -- the stage -------------------------------------------------------------------------------


def memory_config(recipe: SequenceRecipe) -> Memory3Config:
    """How the recipe's memories are written and read."""
    memory = recipe.memory
    return Memory3Config(
        tuple(range(memory.num_layers(recipe.shape))),
        kept_tokens=memory.kept_tokens,
        reference_tokens=memory.reference_tokens,
        num_memories=memory.memories,
        chunk_tokens=memory.chunk_tokens,
        refresh_tokens=memory.chunk_tokens,
    )


def sequence_task(run: SequenceRun) -> Task:
    """The task of the recipe's stage: running text, read with memories of its references if `reads` is set."""
    recipe = run.recipe
    lm: LM = run.call_with_params(reading_model, run)
    method = Memory3(memory_config(recipe)) if recipe.reads else None
    loader = Loader(run.stored, recipe.rows // recipe.parts, recipe.seed, references=recipe.reads)

    def loss(number: int) -> tuple[Tensor, int]:
        batch = loader.batch(number).to(run.device)
        with cast(run.device, recipe):
            nats = sequence_loss(lm, batch, method, writes=recipe.writes)
        run.count(loss_text=float(mean(nats)))
        return nats, batch.ids_BT.numel()

    def rate(step: int) -> float:
        return rate_at(recipe.schedule, step, recipe.num_steps, recipe.warmup_steps, recipe.decay_share)

    def evaluate(step: int) -> dict[str, float]:
        return evaluate_heldout(run, lm, method)

    return Task(
        recipe.stage,
        loss,
        rate,
        evaluate,
        recipe.eval_every,
        evaluate,
        recipe=recipe,
        parts=recipe.parts,
        oom_hint=_oom_hint(recipe),
    )


def _oom_hint(recipe: SequenceRecipe) -> str:
    """Names more parts first, since they do not change the step."""
    more = next((count for count in range(recipe.parts + 1, recipe.rows + 1) if recipe.rows % count == 0), None)
    return "rows or sequence_tokens" if more is None else f"the sequences of a part (--set parts={more}), or rows"


def reading_model(run: SequenceRun) -> LM:
    """The run's model, able to read memory. It is proved with its own attention, then gets a fast one on a CPU."""
    run.model.set_attn_implementation("sdpa")
    run.model.eval()
    lm = LM(run.model, run.tokenizer, run.recipe.stage)
    if run.device.type == "cpu":
        use_fast_attention(run.model)
    run.model.train()
    return lm


@torch.no_grad()
def evaluate_heldout(run: SequenceRun, lm: LM, method: Memory3 | None) -> dict[str, float]:
    """`loss_text_none`: nats per token of held-out sequences without memory; `loss_text_memory`: with memory.

    {} if there are none. The references of held-out sequences come from held-out text, too.
    """
    if run.heldout is None:
        return {}
    run.model.eval()
    lm.drop_constants()
    rows = run.heldout.rows(range(min(run.recipe.eval_rows, len(run.heldout))))
    ways = {"loss_text_none": None} if method is None else {"loss_text_none": None, "loss_text_memory": method}
    totals = dict.fromkeys(ways, 0.0)
    for first in range(0, len(rows), EVAL_BATCH):
        part = rows[first : first + EVAL_BATCH]
        ids_BT = torch.stack([torch.from_numpy(row.ids.astype("int64")) for row in part])
        batch = Sequences(ids_BT, [run.heldout.reference_ids(row.references) for row in part]).to(run.device)
        for name, way in ways.items():
            with cast(run.device, run.recipe):
                totals[name] += float(mean(sequence_loss(lm, batch, way))) * len(part)
    run.model.train()
    return {name: round(total / len(rows), 4) for name, total in totals.items()}


# -- the run ---------------------------------------------------------------------------------


def start_sequence_run(
    recipe: SequenceRecipe, data: str | Path, folder: Path, start: Path | None = None
) -> SequenceRun:
    """A run at step 0 on the sequences of `data`, a folder or a URI. Their tokenizer is copied into `folder`.

    `start`: a model folder whose weights the run begins with; it must have the tokenizer of the sequences. InputError
    if recipe, sequences and model do not fit each other.
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
                f"the sequences in {str(data)!r} and {str(name)!r} have different tokenizers",
                "make the sequences with that --model, or use another --out",
            )
    model = build_model(recipe.shape, recipe.seed)
    model.config.update({f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")})
    scale_residual_init(model)
    if start is not None:
        load_model(model, start)
    if recipe.checkpointing:
        enable_gradient_checkpointing(model)
    model.to(device)
    groups = _param_groups(recipe, dict(model.named_parameters()))
    optimizer, call_with_params = whole_model_optimizer(model, recipe.dtype, groups, recipe.clip_norm)
    return SequenceRun(
        folder,
        optimizer,
        recipe.guard,
        call_with_params=call_with_params,
        data_files=stored.about.sizes,
        has_start=start is not None,
        recipe=recipe,
        model=model,
        tokenizer=tokenizer,
        device=device,
        stored=stored,
        heldout=_heldout(recipe, str(data), stored),
    )


def _check(recipe: SequenceRecipe, stored: SequenceFolder) -> None:
    about = stored.about
    for field, own, other in (
        ("sequence_tokens", recipe.sequence_tokens, about.sequence_tokens),
        ("memory.chunk_tokens", recipe.memory.chunk_tokens, about.chunk_tokens),
        ("memory.reference_tokens", recipe.memory.reference_tokens, about.reference_tokens),
    ):
        if own != other:
            raise InputError(
                f"the sequences in {stored.place!r} have {field} {other}, the recipe has {own}",
                f"use --set {field}={other}, or make other sequences with `remanence data sequences`",
            )
    if about.vocab_size > recipe.shape.vocab_size:
        raise InputError(
            f"the sequences' tokenizer has {about.vocab_size} entries, the model {recipe.shape.vocab_size}",
            f"use --set shape.vocab_size={about.vocab_size} or more",
        )


def _heldout(recipe: SequenceRecipe, data: str, stored: SequenceFolder) -> SequenceFolder | None:
    """The held-out part of `data`, if there is one."""
    if not stored.has(f"{VALIDATION}/{ABOUT}"):
        return None
    heldout = SequenceFolder(f"{data.rstrip('/')}/{VALIDATION}", stored.about.tokenizer)
    _check(recipe, heldout)
    return heldout


@torch.no_grad()
def scale_residual_init(model: Any) -> None:
    """Divides the output matrices of all layers by the root of twice the number of layers (inferred: §5 is silent)."""
    for layer in model.model.layers:
        for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            matrix.mul_((2 * len(model.model.layers)) ** -0.5)


def _param_groups(recipe: SequenceRecipe, parameters: Mapping[str, nn.Parameter]) -> list[ParamGroup]:
    """Matrices of layers by the recipe's rule, embeddings by AdamW, both with weight decay; norms without."""
    matrices = tuple(name for name, p in parameters.items() if p.ndim == 2)
    inner = tuple(name for name in matrices if ".layers." in name)
    outer = tuple(name for name in matrices if name not in inner)
    norms = tuple(name for name in parameters if name not in matrices)
    return [
        ParamGroup(recipe.matrix_rule, inner, recipe.lr, recipe.weight_decay, recipe.betas),
        ParamGroup("adamw", outer, recipe.lr, recipe.weight_decay, recipe.betas),
        ParamGroup("adamw", norms, recipe.lr, 0.0, recipe.betas),
    ]


def sequence_stage(run: SequenceRun, name: str, steps: int | None = None) -> Stage:
    """The recipe's only stage. It begins with the weights of the recipe's stage `after`, or with `--start`."""
    recipe, after = run.recipe, run.recipe.after

    def begin(resume: bool) -> None:
        if after and not (resume or run.has_start):
            hint = f"train memory3/{after} into the same --out first, or give --start FOLDER"
            load_stage(run, recipe.stage, after, hint)

    num_steps = min(recipe.num_steps, steps or recipe.num_steps)
    return Stage(recipe.stage, num_steps, lambda: sequence_task(run), begin)


def export_sequences(run: SequenceRun) -> None:
    """Writes the model of the stage's last checkpoint, with a model card, as a folder that `--model` loads.

    The folder is `export` for the stages of the paper, `export-STAGE` for others, such as a control.
    """
    require_one_process("an export")
    stage = run.recipe.stage
    loop.load_weights(run, stage)
    out = run.folder / ("export" if stage in MODEL_STAGES else f"export-{stage}")
    export(out, run.recipe.shape, run.optimizer.masters, run.tokenizer, None, stop=())
    settings = {"memory3": {**vars(memory_config(run.recipe))}}
    (out / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
    if described_stage(out) not in (None, stage):
        (out / CARD).unlink()  # it describes weights that are no longer there
    write_card(out, run, run.recipe, {"method": "memory3", **settings["memory3"]})
    run.log({"step": run.step, "stage": "export", "of": stage})


def _prepare(recipe: SequenceRecipe, args: TrainArgs) -> SequenceRecipe:
    if args.stage not in ("all", EXPORT, recipe.stage):
        raise InputError(f"{args.name} has no stage {args.stage!r}", f"it is {recipe.stage}: leave --stage out")
    if args.data is None:
        hint = "make it with `remanence data sequences --data FOLDER --out FOLDER`, and give it as --data"
        raise InputError(f"{args.name} is trained on a folder of sequences", hint)
    return recipe


def _start(recipe: SequenceRecipe, args: TrainArgs, is_first: bool) -> SequenceRun:
    return start_sequence_run(recipe, args.uri or args.data or "", args.out, args.start)


TRAINER: Trainer[SequenceRecipe, SequenceRun] = Trainer(
    ("warmup", "continual", EXPORT),
    lambda recipe: (recipe.stage, EXPORT),
    _start,
    sequence_stage,
    {EXPORT: lambda run, args: export_sequences(run)},
    _prepare,
    shares_run=True,
)
