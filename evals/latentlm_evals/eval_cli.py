"""`latentlm eval`: lm-eval tasks on a model, through the adapter, whether or not the start-up hook is there.

    latentlm eval free-tiny                                          # the shipped tasks
    latentlm eval runs/mine --tasks latentlm_next_line --samples 64
    latentlm eval free-tiny --tasks my_task --include-path tasks/ --json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from latentlm.cli.output import AsJson, emit
from latentlm.errors import UserError
from latentlm_evals.suites import DEFAULT_SUITE, task_path

EXAMPLES = """
Examples:

  latentlm eval free-tiny

  latentlm eval runs/mine --tasks latentlm_next_line,latentlm_copy --samples 64 --json

  latentlm eval free-tiny --tasks my_task --include-path my_tasks/ --output results.json

  lm_eval --model latentlm --model_args model=free-tiny --tasks latentlm_short --include_path "$(latentlm eval --task-path)"
"""

app = typer.Typer(add_completion=False)


def _print_task_path(asked: bool) -> None:
    if asked:
        typer.echo(str(task_path()), file=sys.stdout)
        raise typer.Exit


@app.command(epilog=EXAMPLES)
def evaluate(
    model: Annotated[str, typer.Argument(help="A name of the zoo, or a run folder.")],
    tasks: Annotated[str, typer.Option(help="Comma-separated lm-eval tasks and groups.")] = DEFAULT_SUITE,
    include_path: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
    score: Annotated[str, typer.Option(help="operational, iwae, elbo, prior or joint.")] = "operational",
    samples: Annotated[int, typer.Option(min=1, help="Latent samples per request.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the keyed random numbers.")] = 0,
    limit: Annotated[float | None, typer.Option(min=0, help="Items per task, or their share below 1.")] = None,
    batch_size: Annotated[str, typer.Option(help='Requests per forward pass, or "auto".')] = "auto",
    device: Annotated[str | None, typer.Option(help='"cpu", "cuda", ...; default: the model\'s.')] = None,
    tokenizer: Annotated[str | None, typer.Option(help='For a card without one: "bytes" or a tokenizer.json.')] = None,
    allow_random: Annotated[bool, typer.Option(help="Evaluate an architecture card's random weights.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write lm-eval's whole results here, as JSON.")] = None,
    as_json: AsJson = False,
    show_task_path: Annotated[
        bool, typer.Option("--task-path", is_eager=True, callback=_print_task_path, help="Print the shipped tasks' folder.")
    ] = False,
) -> None:
    """Run lm-eval tasks on a model. The default are the shipped ones, which need no network."""
    from latentlm_evals.adapter import LatentLM
    from latentlm_evals.evaluation import check_tasks, run_tasks, task_results

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    check_tasks(names, include_path)
    _check_output(output)
    adapter = LatentLM.create_from_arg_obj(
        {
            "model": model,
            "score": score,
            "samples": samples,
            "seed": seed,
            "batch_size": batch_size,
            "device": device,
            "tokenizer": tokenizer,
            "allow_random": allow_random,
        }
    )
    results = run_tasks(adapter, names, limit=limit, include_path=include_path)
    rows = task_results(results)
    facts = results["config"]["latentlm"]
    if output is not None:
        _write(output, results)
    if as_json:
        emit(json.dumps({"model": model, "facts": facts, "tasks": [vars(row) for row in rows]}, indent=2))
    else:
        _print_table(model, rows, facts)


def _check_output(output: Path | None) -> None:
    """Refuse a place that cannot be written before the long work, not after."""
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise UserError(f"--output {output} is not a file in an existing folder; give one, such as results.json.")


def _write(output: Path, results: dict[str, Any]) -> None:
    from lm_eval.utils import handle_non_serializable

    try:
        output.write_text(json.dumps(results, indent=2, default=handle_non_serializable), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror}); choose another --output.") from None


def _print_table(model: str, rows: list[Any], facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    how = f"{facts['score']}, K={facts['samples']}" if facts["samples"] else "exact likelihoods"
    table = Table(title=f"{model} ({how}, seed {facts['seed']})", title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for column in ("value", "std error", "chance", "items"):
        table.add_column(column, justify="right")
    for row in rows:
        error = "-" if row.standard_error is None else f"{row.standard_error:.4f}"
        chance = "-" if row.chance is None else f"{row.chance:g}"
        table.add_row(row.task, row.metric, f"{row.value:.4f}", error, chance, str(row.items))
    Console().print(table)
