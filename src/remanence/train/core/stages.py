"""One runner for the stages of every recipe: from the first step or from a checkpoint, then the export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from remanence.errors import InputError
from remanence.train.core import checkpoint, loop, parallel
from remanence.train.core.checkpoint import Checkpoint
from remanence.train.core.loop import Run, Task
from remanence.train.core.run_folder import begin_stage, end_stage

RecipeT = TypeVar("RecipeT")
BasedRecipeT = TypeVar("BasedRecipeT", bound=Any)
RunT = TypeVar("RunT", bound=Run)
EXPORT = "export"


@dataclass(frozen=True)
class TrainArgs:
    """What the user chose beside the recipe.

    - `name`: the recipe's name. `stage`: one of the trainer's stages, or "all".
    - `out`: the folder of the run. `start`: the model folder to begin with.
    - `data`: the data folder; `uri`: the same as it was written, which may be a URI.
    - `steps`: the step to stop at; None: the end of the stage.
    - `on_run`: called with every run before its first step.
    """

    name: str
    stage: str
    out: Path
    data: Path | None = None
    uri: str | None = None
    start: Path | None = None
    steps: int | None = None
    resume: bool = False
    skip_damaged: bool = False
    compiled: bool = False
    on_run: Callable[[Run], None] = lambda run: None

    @property
    def model_folder(self) -> Path:
        """The folder for the model or adapter that comes out, named after the recipe."""
        return self.out / self.name.replace("/", "-")


@dataclass(frozen=True)
class Stage:
    """One stage of a run: `task()` trains until step `num_steps`.

    `begin(resume)` runs before `task` is made: it loads the weights that the stage begins with, and checks the data.
    """

    name: str
    num_steps: int
    task: Callable[[], Task]
    begin: Callable[[bool], None] = lambda resume: None


@dataclass(frozen=True)
class Trainer(Generic[RecipeT, RunT]):
    """How the recipes of one class are trained.

    - `stages`: what --stage may name beside "all". `planned(recipe)`: the stages of "all", in order.
    - `prepare(recipe, args)`: checks the arguments before anything is loaded; returns the recipe to train.
    - `start(recipe, args, is_first)`: a run at step 0; `is_first`: of the first stage.
    - `stage(run, name, steps)`: a stage that trains.
    - `writers`: stages that do not train, but write something out of a run that was trained.
    - `shares_run`: all stages use the run of the first, instead of a new one each.
    """

    stages: tuple[str, ...]
    planned: Callable[[RecipeT], Sequence[str]]
    start: Callable[[RecipeT, TrainArgs, bool], RunT]
    stage: Callable[[RunT, str, int | None], Stage]
    writers: Mapping[str, Callable[[RunT, TrainArgs], None]]
    prepare: Callable[[RecipeT, TrainArgs], RecipeT] = lambda recipe, args: recipe
    can_compile: bool = False
    shares_run: bool = field(default=False, kw_only=True)


def train_recipe(trainer: Trainer[RecipeT, RunT], recipe: RecipeT, args: TrainArgs) -> None:
    """Runs one stage of a recipe, or all of them.

    InputError for arguments that do not fit the recipe. With several processes "all" leaves the export out.
    """
    if args.compiled and not trainer.can_compile:
        raise InputError(f"{args.name} has no --compile", "leave it out")
    recipe = trainer.prepare(recipe, args)
    names = trainer.planned(recipe) if args.stage == "all" else (args.stage,)
    run: RunT | None = None
    for name in names:
        if name == EXPORT and parallel.size() > 1:
            continue
        if run is None or not trainer.shares_run:
            run = trainer.start(recipe, args, name == names[0])
            args.on_run(run)
        if write := trainer.writers.get(name):
            write(run, args)
        else:
            is_there = checkpoint.exists(args.out / name)
            run_stage(run, trainer.stage(run, name, args.steps), resume=args.resume and is_there)


def run_stage(run: Run, stage: Stage, *, resume: bool = False) -> None:
    """Trains a stage from its first step, or with `resume` from its last checkpoint."""
    stage.begin(resume)
    task = stage.task()
    if resume:
        loop.resume(run, task)
    begin_stage(run, task.stage, task.recipe, resumed=resume)
    loop.train(run, task, stage.num_steps)
    end_stage(run, task.stage)


def load_stage(run: Run, stage: str, before: str, hint: str) -> Checkpoint:
    """Loads the weights that `stage` begins with: those of stage `before` in the run's folder. InputError if absent."""
    if not checkpoint.exists(run.folder / before):
        problem = f"stage {stage} begins with the weights of {before}, which {str(run.folder)!r} does not hold"
        raise InputError(problem, hint)
    return loop.load_weights(run, before)


def load_last(run: Run, stages: Sequence[str]) -> str:
    """Loads the weights of the first of `stages` that has a checkpoint; returns its name. InputError if none has."""
    for stage in stages:
        if checkpoint.exists(run.folder / stage):
            loop.load_weights(run, stage)
            return stage
    problem = f"{str(run.folder)!r} holds no checkpoint of {' or '.join(stages) or 'a stage of the model'}"
    raise InputError(problem, "train one of them first, or name the folder with --out")


def require_one_process(what: str) -> None:
    """InputError if several processes run."""
    if parallel.size() > 1:
        raise InputError(f"{what} needs a single process", "start it without torchrun")


def start_as_base(recipe: BasedRecipeT, args: TrainArgs) -> BasedRecipeT:
    """The recipe with --start as its `base`."""
    return replace(recipe, base=str(args.start)) if args.start else recipe


def sample_interval(recipe: Any) -> int:
    """Steps between example answers of a recipe with `sample_every` (None: as `eval_every`)."""
    return recipe.eval_every if recipe.sample_every is None else recipe.sample_every
