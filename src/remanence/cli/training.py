"""What `remanence train` does for each kind of recipe: its stages, how it is trained, what a dry run says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remanence.cli.terminal import print_json, say

if TYPE_CHECKING:
    from remanence.train.recipes.chat import ChatRecipe
    from remanence.train.recipes.nano import Recipe
    from remanence.train.recipes.nano_mplus import MPlusRecipe
    from remanence.train.recipes.retrofit import RetrofitRecipe
    from remanence.train.recipes.sequences import SequenceRecipe

RETRIEVERS = "retrievers"


@dataclass(frozen=True)
class Wanted:
    """What the command line says beside the recipe; `name` is the recipe's, `uri` the data's as it was written."""

    name: str
    stage: str
    data: Path | None
    out: Path
    steps: int | None
    start: Path | None
    resume: bool
    skip_damaged: bool
    compiled: bool
    uri: str | None = None
    watch: Callable[[Any], None] = lambda run: None


@dataclass(frozen=True)
class Kind:
    """`stages` that --stage may name beside "all"; `train` does them."""

    stages: tuple[str, ...]
    train: Callable[[Any, Wanted], None]


def kinds() -> Mapping[type, Kind]:
    """By the class of the recipe."""
    from remanence.train.recipes.chat import CHAT_STAGES, ChatRecipe
    from remanence.train.recipes.nano import STAGES, Recipe
    from remanence.train.recipes.nano_mplus import MPlusRecipe
    from remanence.train.recipes.retrofit import RetrofitRecipe
    from remanence.train.recipes.sequences import SequenceRecipe

    return {
        ChatRecipe: Kind((*CHAT_STAGES, "export"), train_chat),
        Recipe: Kind((*STAGES, "export"), train_stages),
        MPlusRecipe: Kind(("export", RETRIEVERS), train_latent),
        SequenceRecipe: Kind(("warmup", "continual", "export"), train_sequences),
        RetrofitRecipe: Kind(("continual", "export"), train_retrofit),
    }


def train_stages(recipe: Recipe, wanted: Wanted) -> None:
    """Whole models, stage by stage."""
    from remanence.train import checkpoint, parallel
    from remanence.train.start import run_stage, start_run

    stages: Any = recipe.stages if wanted.stage == "all" else (wanted.stage,)
    for one in stages:
        if one == "export" and parallel.size() > 1:
            continue  # one process does it: `--stage export` without torchrun
        begins = wanted.start if one == stages[0] else None
        run = start_run(
            recipe, wanted.data, wanted.out, begins, compiled=wanted.compiled, skip_damaged=wanted.skip_damaged
        )
        wanted.watch(run)
        run_stage(run, one, wanted.steps, wanted.resume and checkpoint.exists(wanted.out / one))


def train_chat(recipe: ChatRecipe, wanted: Wanted) -> None:
    """SFT, DPO, and the folder that `--model` loads, named after the recipe."""
    from remanence.train import chat_start

    _train_further(recipe, wanted, chat_start.start_chat_run, chat_start.run_chat_stage, chat_start.export_chat)


def train_retrofit(recipe: RetrofitRecipe, wanted: Wanted) -> None:
    """Continual training of the model that --start names, and the folder that `--model` loads."""
    from remanence.train import retrofit_start as r

    def run_stage(run: Any, stage: str, steps: int | None, again: bool) -> None:
        r.run_retrofit(run, steps, again)

    _train_further(recipe, wanted, r.start_retrofit_run, run_stage, r.export_retrofit)


def _train_further(
    recipe: Any,
    wanted: Wanted,
    start_run: Callable[..., Any],
    run_stage: Callable[[Any, Any, int | None, bool], None],
    export: Callable[[Any, Path], None],
) -> None:
    """The stages of a model that is there already (--start, or the recipe's base)."""
    from remanence.errors import InputError
    from remanence.train import checkpoint

    if wanted.compiled:
        raise InputError(f"{wanted.name} has no --compile", "leave it out")
    if wanted.start:
        recipe = replace(recipe, base=str(wanted.start))
    for one in recipe.stages if wanted.stage == "all" else (wanted.stage,):
        run = start_run(recipe, wanted.data, wanted.out, skip_damaged=wanted.skip_damaged)
        wanted.watch(run)
        if one == "export":
            export(run, wanted.out / wanted.name.replace("/", "-"))
        else:
            run_stage(run, one, wanted.steps, wanted.resume and checkpoint.exists(wanted.out / one))


def train_latent(recipe: MPlusRecipe, wanted: Wanted) -> None:
    """M+'s phases one after the other, then what `--model ADAPTER` loads; the run is kept in the folder around it.

    Stage "retrievers": other projectors for the adapter that is trained already, beside it.
    """
    from remanence.errors import InputError
    from remanence.train import checkpoint, latent_export, latent_start, loop, retriever
    from remanence.train.folder import stage_begins, stage_ends
    from remanence.train.latent import latent

    if wanted.compiled:
        raise InputError(f"{wanted.name} has no --compile", "leave it out")
    if wanted.start:
        recipe = replace(recipe, base=str(wanted.start))
    out, adapter, steps = wanted.out, wanted.out / wanted.name.replace("/", "-"), wanted.steps
    is_there = checkpoint.exists(out / recipe.stage)
    if wanted.stage != "all" and not is_there:
        raise InputError(f"{str(out)!r} holds no checkpoint", "train first, or name the folder with --out")
    run = latent_start.start_latent_run(recipe, recipe.base, wanted.data, out, skip_damaged=wanted.skip_damaged)
    wanted.watch(run)
    task = latent(run, recipe.num_steps)
    if (wanted.resume or wanted.stage != "all") and is_there:
        loop.resume(run, task)
    elif recipe.after:
        latent_start.begin_after(run, recipe.after)
    if wanted.stage == RETRIEVERS:
        adapter.mkdir(exist_ok=True)
        for loss in retriever.LOSSES:
            file = adapter / f"retriever-{loss}.safetensors"
            retriever.train_retriever(run, loss, retriever.STEPS if steps is None else steps, file)
        return
    if wanted.stage == "all":
        stage_begins(run, task.stage, recipe, again=run.step > 0)
        loop.train(run, task, min(recipe.num_steps, steps or recipe.num_steps))
        stage_ends(run, task.stage)
    num_bytes = latent_export.export_latent(run, adapter, recipe.base)
    run.log({"step": run.step, "stage": "export", "bytes": num_bytes})


def train_sequences(recipe: SequenceRecipe, wanted: Wanted) -> None:
    """One stage on stored sequences, then (by one process) the model that came out, in `out/export`."""
    from remanence.errors import InputError
    from remanence.train import checkpoint, parallel
    from remanence.train.text_run import export_sequences, run_sequences, start_sequence_run

    if wanted.stage not in ("all", "export", recipe.stage):
        raise InputError(f"{wanted.name} has no stage {wanted.stage!r}", f"it is {recipe.stage}: leave --stage out")
    if wanted.data is None:
        hint = "make it with `remanence data sequences --data FOLDER --out FOLDER`, and give it as --data"
        raise InputError(f"{wanted.name} is trained on a folder of sequences", hint)
    if wanted.compiled:
        raise InputError(f"{wanted.name} has no --compile", "leave it out")
    run = start_sequence_run(recipe, wanted.uri or wanted.data, wanted.out, wanted.start)
    wanted.watch(run)
    if wanted.stage in ("all", recipe.stage):
        run_sequences(run, wanted.steps, wanted.resume and checkpoint.exists(wanted.out / recipe.stage))
    if wanted.stage == "export" or (wanted.stage == "all" and parallel.size() == 1):
        export_sequences(run)


def show_estimate(recipe: Any, wanted: Wanted, as_json: bool) -> None:
    """What `estimate` says, for people or as JSON."""
    from remanence.errors import InputError
    from remanence.train.estimate import USE, estimate
    from remanence.train.recipes.nano import Recipe

    if wanted.steps:
        raise InputError("--dry-run counts whole stages", "leave --steps out, or set num_steps of its phases")
    if wanted.stage != "all" and isinstance(recipe, Recipe):
        stages: Any = (wanted.stage,)
        recipe = replace(recipe, stages=stages)
    if wanted.start and hasattr(recipe, "base"):
        recipe = replace(recipe, base=str(wanted.start))
    found = estimate(recipe)
    if as_json:
        print_json({"recipe": wanted.name, **found})
        return
    billion = found["bytes_per_device"]
    say((f"{wanted.name}: ", "bold"), f"{found['parameters']:,} parameters, {billion['1'] / 1e9:,.2f} GB")
    if trained := found.get("trained_parameters"):
        say(f"  {trained:,} are trained, those of adapters beside them")
    for name, told in found["stages"].items():
        say(f"  {name:<18} {told['steps']:>9,} steps {round(told['tokens']):>19,} tokens {told['flops']:>9.2e} FLOPs")
    hours = (f"{_rounded(hours)} on one {name}" for name, hours in found["hours_on_one"].items())
    say(f"hours at {USE:.0%} of the peak: {', '.join(hours)}")
    many = f"{billion['8'] / 1e9:,.2f} on each of 8" if "8" in billion else "one process holds all of it"
    say((f"GB of weights, gradients, masters and optimizer; {many}; no activations", "dim"))
    if long := found.get("host_bytes"):
        say((f"{long / 1e9:,.2f} GB of long-term memory beside the device", "dim"))


def _rounded(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"
