"""`remanence eval TASK`: answers with memory, without it, and with the same references as text."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.text import Text

from remanence.cli import eval_latent, eval_training
from remanence.cli import options as o
from remanence.cli.opening import model_for
from remanence.cli.terminal import note, out, print_json, progress, say, table
from remanence.eval import tasks

SYSTEMS = "plain,METHOD,retrieved_text,full_context"
COLUMNS = (
    *("exact_match", "f1", "answered", "abstained"),
    *("recall_at_5", "passage_in_context", "answer_in_recalled", "prompt_tokens", "seconds"),
)
COSTS = ("prompt_tokens", "seconds")

NOption = Annotated[int, typer.Option("--n", metavar="N", help="The most questions.")]
SystemsOption = Annotated[
    str, typer.Option("--systems", metavar="A,B", help="plain, or names of methods; METHOD stands for --method.")
]
BatchOption = Annotated[int, typer.Option("--batch", metavar="N", help="Questions per batch.")]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", metavar="N", help="The longest answer, in tokens.")]
DetailsOption = Annotated[
    Path | None, typer.Option("--details", metavar="FILE", help="Write questions and answers to this file, as JSONL.")
]

app = typer.Typer(no_args_is_help=True, help="Measure answers with memory, without it, and with references as text.")


def run_task(
    n: NOption = 500,
    systems: SystemsOption = SYSTEMS,
    batch: BatchOption = 16,
    max_tokens: MaxTokensOption = 32,
    details: DetailsOption = None,
    model: o.ModelOption = o.MODEL,
    method: o.MethodOption = o.METHOD,
    seed: o.SeedOption = o.SEED,
    as_json: o.JsonOption = False,
    *,
    task: tasks.Task,
) -> None:
    """Runs a task. Its command has the task's own options in front of these."""
    from remanence.eval.run import Options, evaluate, result, write_details
    from remanence.lm.load import load
    from remanence.measurement import check_writable

    names = tuple(name.strip().replace("METHOD", method) for name in systems.split(",") if name.strip())
    options = Options(tuple(dict.fromkeys(names)), n, batch, max_tokens, seed=seed)
    if details:
        check_writable(details)
    name = model_for(next((name for name in names if name.startswith("mplus")), method), model)
    with progress(f"Loading {name}"):
        lm = load(name)
    run = evaluate(lm, task, options, progress)
    report = result(lm, task, options, run)
    if details:
        write_details(run, details)
    if as_json:
        print_json(report)
    else:
        show(report, details)


def show(result: dict[str, Any], details: Path | None) -> None:
    conditions = result["conditions"]
    facts = ", ".join(f"{_number(value)} {name.replace('_', ' ')}" for name, value in conditions.items())
    say(f"{result['task']}: {result['n']} questions to {result['model']} ({facts})\n")
    columns = [name for name in COLUMNS if any(name in figures for figures in result["systems"].values())]
    shown = table("system", *((name.replace("_", " "), {"justify": "right"}) for name in columns))
    for system, figures in result["systems"].items():
        cells = [_cell(name, figures.get(name)) for name in columns]
        shown.add_row(Text(system, style="cyan"), *cells)
    out().print(shown)
    for name, value in result["ratios"].items():
        say(f"\n{name.replace('_', ' ')}: ", (f"{value:.3f}", "bold"))
    if details:
        note(f"questions and answers are in {details}")


def _cell(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if name in COSTS else f"{value:.3f}"


def _number(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def command(task: type[tasks.Task]) -> Callable[..., None]:
    """`run_task` with the fields of a task as options, so that a new task needs no code here."""
    fields = dataclasses.fields(task)  # type: ignore[arg-type]

    def run(**values: Any) -> None:
        own = {field.name: values.pop(field.name) for field in fields}
        run_task(**values, task=task(**own))

    shared = list(inspect.signature(run_task, eval_str=True).parameters.values())[:-1]
    hints = get_type_hints(task)
    parameters = [*(_parameter(field, hints[field.name]) for field in fields), *shared]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = task.__doc__
    return run


def _parameter(field: dataclasses.Field, hint: Any) -> inspect.Parameter:
    metavar = None if hint is bool else "N" if hint is int else "FILE"
    option = typer.Option(f"--{field.name.replace('_', '-')}", metavar=metavar, help=field.metadata["help"])
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(field.name, kind, default=default, annotation=Annotated[hint, option])


for name, task in tasks.known().items():
    app.command(name)(command(task))
for name, run in (
    ("retention", eval_latent.retention),
    ("ltm-recall", eval_latent.ltm_recall),
    ("perplexity", eval_latent.perplexity),
    ("figure11", eval_training.figure11),
):
    app.command(name)(run)
