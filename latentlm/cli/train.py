"""latentlm train RECIPE [key=value ...]: train a model into a run folder."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from latentlm.cli.output import AsJson, emit
from latentlm.errors import UserError, shown

app = typer.Typer(pretty_exceptions_enable=False)

_EXAMPLES = """Train a model from a recipe: a YAML file, the name of a zoo model's recipe, or an earlier run's folder.

Examples:

  latentlm train free-tiny train.steps=200 --out runs/try

  latentlm train my.yaml data.path=texts/ data.tokenizer=bpe:4096

  latentlm train my.yaml --dry-run

  latentlm train free-8b --dry-run --processes 64 --gpu H100 train.parallel.replicate=8

  latentlm train runs/try --resume

  latentlm train runs/try --resume data.path=where/the/texts/are/now/

  torchrun --nproc_per_node 2 -m latentlm train free-tiny --out runs/two

What it writes is a model: latentlm generate runs/try "def ".
"""


@app.command(help=_EXAMPLES)
def train(
    recipe: Annotated[str, typer.Argument(help="YAML file, recipe name, or run folder.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: train.steps=500 model.event_dims=8", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/NAME.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say parameters, memory and time, and write nothing.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="With --dry-run: count for so many GPUs, without reading the data.", show_default=False),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="With --processes: A100, H100 or H200; default: H100.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and the result only.")] = False,
) -> None:
    """Train, or plan, and print the result."""
    from latentlm.training.parallel import speaks

    if processes is not None and not dry_run:
        raise UserError("--processes counts what a run would need, with --dry-run; torchrun --nproc_per_node starts processes.")
    if gpu is not None and processes is None:
        raise UserError("--gpu says for which GPUs --processes counts: give the number of them too.")
    if processes is not None and (out is not None or resume or quiet):
        raise UserError("--out, --resume and --quiet are about training; --dry-run --processes only counts. Leave them out.")
    with _first_speaks(speaks()):
        if processes is not None:
            _plan_of_many(recipe, overrides, processes, gpu or "H100", as_json=as_json)
        else:
            _train_or_plan(recipe, overrides, out, resume=resume, dry_run=dry_run, as_json=as_json, quiet=quiet)


@contextmanager
def _first_speaks(first: bool) -> Iterator[None]:
    """Of several processes one says what the user can mend, and the result; that one is lost, only one of the others knows."""
    try:
        with nullcontext() if first else redirect_stdout(io.StringIO()):
            yield
    except UserError as error:
        from latentlm.training.parallel import ElsewhereError, LostError

        if isinstance(error, LostError) or (first and not isinstance(error, ElsewhereError)):
            raise
        sys.exit(1)


def _train_or_plan(
    recipe: str, overrides: list[str] | None, out: Path | None, *, resume: bool, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    from latentlm.training.recipes import default_out, load_recipe

    checked = load_recipe(recipe, overrides)
    if dry_run:
        from latentlm.training.plan import make_plan

        plan = make_plan(checked)
        _say(plan.text(), plan.to_dict() if as_json else None)
        return
    result = _train(checked, out or default_out(recipe, checked, resume=resume), resume=resume, quiet=quiet)
    _say(_summary(result), result.to_dict() if as_json else None)


def _plan_of_many(recipe: str, overrides: list[str] | None, processes: int, gpu: str, *, as_json: bool) -> None:
    from latentlm.training.mesh_plan import make_mesh_plan
    from latentlm.training.recipes import load_recipe

    plan = make_mesh_plan(load_recipe(recipe, overrides), processes=processes, gpu=gpu)
    _say(plan.text(), plan.to_dict() if as_json else None)


def _say(text: str, data: dict[str, Any] | None) -> None:
    """Data for a program where there are any, else the text."""
    if data is None:
        typer.echo(shown(text), file=sys.stdout)
    else:
        emit(data)


def _train(recipe: Any, out: Path, *, resume: bool, quiet: bool) -> Any:
    """Train; a stop on request ends the process with status 130."""
    from latentlm.training.loop import InterruptedRun
    from latentlm.training.loop import train as run
    from latentlm.training.parallel import speaks

    try:
        return run(recipe, out=out, resume=resume, progress=not quiet)
    except InterruptedRun as stop:
        if speaks():
            typer.echo(shown(str(stop)), file=sys.stderr)
    except KeyboardInterrupt:
        typer.echo("stopped; what was saved before is intact.", file=sys.stderr)
    sys.exit(130)


def _summary(result: Any) -> str:
    from latentlm.training.record.reporting import bound_text, kl_text

    held_out = result.held_out
    known = held_out.get("standard_error")
    error = "" if known is None else f" ± {known:.3f}"
    measured = f"{bound_text(held_out, error)}, {kl_text(held_out)}" if held_out else "not recorded"
    return (
        f"{result.out}: {result.steps:,} steps, {result.tokens:,} tokens, {result.tokens_per_second:,.0f} tokens/s\n"
        f"held out: {measured}\n"
        f'try it: latentlm generate {result.out} "def "'
    )
