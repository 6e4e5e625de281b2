"""`latentlm compare`: train or load several models, measure them alike, and lay them side by side in a table and a page; or
compare evaluations that lm-eval has logged, item by item."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentlm.cli.output import AsJson, emit
from latentlm.cli.text import escaped
from latentlm.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

  latentlm compare demo-vanilla demo-free

  latentlm compare vanilla-tiny free-tiny --out runs/tiny

  latentlm compare vanilla-tiny chunk-tiny --max-samples 256 --dry-run

  latentlm compare demo-vanilla demo-free train.steps=300 data.path=my_texts/

  latentlm compare runs/mine/a runs/mine/b --tasks none --json

  latentlm compare vanilla-tiny free-tiny --tasks "my_*,arc_easy" --include-path my_tasks/ --limit 200

Several seeds of a model, with commas:

  latentlm compare runs/plain-0,runs/plain-1 runs/free-0,runs/free-1

Folders of lm_eval --log_samples, of any model type:

  lm_eval --model hf --model_args pretrained=PATH --tasks arc_easy --log_samples --output_path out/hf

  latentlm compare out/hf out/free --tasks arc_easy
"""
_MEASURING = (
    "jobs", "method", "samples", "tolerance", "max_samples", "task_samples", "dry_run", "documents", "document_bytes",
    "include_path", "limit", "seed", "picture", "caption",
)  # fmt: skip
"""Options of models, which mean nothing where the answers are logged."""


@app.command(epilog=_EPILOG)
def compare(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            help="Recipes (trained first), cards or run folders, and key=value overrides of the recipes; or folders of "
            "lm_eval --log_samples. Runs of one model: with commas."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for runs, results and page. Default: runs/compare-NAMES.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Models trained at the same time.")] = 2,
    method: Annotated[str, typer.Option(help="auto: iwae, then smc for windows that it does not settle; iwae; smc.")] = "auto",
    samples: Annotated[
        str, typer.Option(help='Latent samples per window; "auto" doubles them, from 32, until the score meets --tolerance.')
    ] = "auto",
    tolerance: Annotated[float, typer.Option(help="Bits per byte that the likelihoods are to be good to.")] = 0.01,
    max_samples: Annotated[int, typer.Option(min=1, help='Where "auto" gives up, and the table says so.')] = 64,
    task_samples: Annotated[str, typer.Option(help='Latent samples per lm-eval request; "auto": to 0.01 nats.')] = "16",
    documents: Annotated[int, typer.Option(min=2, help="Held-out documents to score.")] = 48,
    document_bytes: Annotated[int, typer.Option(min=1, help="Bytes of each that are scored, from its start.")] = 2048,
    tasks: Annotated[
        str | None,
        typer.Option(
            help='lm-eval tasks, groups and patterns, comma-separated; "short" for the shipped ones, "none" for none. '
            "Default: short; of logged folders, all that they have."
        ),
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw in the measurements.")] = 0,
    picture: Annotated[list[Path] | None, typer.Option(help="SVG or PNG files for the end of the page.")] = None,
    caption: Annotated[
        list[str] | None, typer.Option(help='Words for each picture, in their order: "HEADING: what it shows".')
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what measuring will take.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train or load several models, measure them alike, and lay them side by side; or compare evaluations logged by lm-eval."""
    from rich.console import Console

    from latentlm_evals.logged_comparison import are_logged
    from latentlm_evals.model_runs import split_runs

    overrides = [text for text in models if "=" in text and not Path(text).exists()]
    names = [text for text in models if text not in overrides]
    console, progress = Console(), Console(stderr=True)
    folder = out or Path("runs") / ("compare-" + "-".join(Path(run).stem for name in names for run in split_runs(name)))
    command = " ".join(["latentlm", *sys.argv[1:]])
    if are_logged(names):
        given = [name for name in _MEASURING if (source := context.get_parameter_source(name)) and source.name != "DEFAULT"]
        for word in (*(f"--{name.replace('_', '-')}" for name in given), *overrides):
            raise UserError(f"{word} is about measuring models, but {names[0]} is a folder of logged answers; leave it out.")
        _show_logged(names, tasks, folder, command, console=console, as_json=as_json)
        return

    from latentlm.likelihood.planning import samples_of
    from latentlm_evals.comparison import Settings, dry, run
    from latentlm_evals.measure import Precision
    from latentlm_evals.tables import show, show_plans

    settings = Settings(
        precision=Precision(method, samples_of(samples), tolerance, max_samples),  # type: ignore[arg-type]
        task_samples=samples_of(task_samples, "--task-samples"),
        documents=documents,
        document_bytes=document_bytes,
        tasks="short" if tasks is None else tasks,
        include_path=include_path,
        limit=limit,
        seed=seed,
        jobs=jobs,
        pictures=tuple(picture or ()),
        captions=tuple(caption or ()),
        command=command,
    )
    if dry_run:
        plans = dry(names, overrides, folder, settings=settings, console=progress)
        if as_json:
            emit({name: asdict(plan) for name, plan in plans.items()})
            return
        show_plans({name: plan.texts for name, plan in plans.items()}, console=console)
        if of_tasks := {name: plan.tasks for name, plan in plans.items() if plan.tasks is not None}:
            show_plans(of_tasks, title="What the tasks will take", console=console)
        return
    comparison = run(names, overrides, folder, settings=settings, console=progress)
    if as_json:
        emit(asdict(comparison))
    else:
        show(comparison, console=console)
        console.print(escaped(f"Page: {folder / 'report.html'}   numbers: {folder / 'comparison.json'}"))


def _show_logged(names: list[str], tasks: str | None, folder: Path, command: str, *, console: Console, as_json: bool) -> None:
    """Compare folders of samples and print what was found."""
    from latentlm_evals.logged_comparison import compare_folders
    from latentlm_evals.paired_tables import show_tasks

    chosen = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    found = compare_folders(names, chosen, folder, command=command)
    if as_json:
        emit(asdict(found))
    else:
        show_tasks(found, console=console)
        console.print(escaped(f"Page: {folder / 'report.html'}   numbers: {folder / 'comparison.json'}"))
