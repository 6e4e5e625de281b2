"""`latentlm study FILE`: arms by seeds from one file, trained, measured and laid side by side."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from latentlm.cli.output import AsJson, emit
from latentlm.errors import UserError, typed_path

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

  latentlm study studies/controls.yaml --dry-run

  latentlm study studies/controls.yaml --only "free-*" --jobs 2

  latentlm study studies/controls.yaml --table

Results are kept in a .jsonl file beside the study, a line for each finished run; what has a line is not run again.
"""


@app.command(epilog=_EPILOG)
def study(
    file: Annotated[Path, typer.Argument(help="The study, a YAML file.", show_default=False)],
    only: Annotated[list[str] | None, typer.Option(help="Names or patterns of arms. Default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs. Default: runs/studies/NAME.")] = None,
    results: Annotated[Path | None, typer.Option(help="Where lines are kept. Default: beside the file, .jsonl.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time. Default: one per core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be run.")] = False,
    show: Annotated[bool, typer.Option("--table", help="Only show what is finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the arms of a study that are not finished, and lay all side by side."""
    from rich.console import Console

    from latentlm_evals.study.plan import chosen, read_study, runs_of, study_file
    from latentlm_evals.study.results import finished, read_lines, tabulated

    console, progress = Console(), Console(stderr=True)
    console.width = max(console.width, 150) if not console.is_terminal else console.width
    path = study_file(typed_path(file))
    plan = read_study(path)
    arms = chosen(plan, only or [])
    every = runs_of(plan, path.parent)
    kept = results or path.with_suffix(".jsonl")
    lines = finished(every, read_lines(kept))
    runs = [run for run in every if run.arm in arms]
    if dry_run:
        from latentlm_evals.study.planned import planned, planned_table

        arms_planned = planned(plan, runs, lines)
        if as_json:
            waiting = [run.name for run in runs if run.name not in lines]
            tokens = sum(one.waiting * one.tokens for one in arms_planned)
            arms_plain = [asdict(one) for one in arms_planned]
            emit({"runs": len(runs), "waiting": waiting, "tokens": tokens, "arms": arms_plain})
        else:
            console.print(planned_table(plan, arms_planned))
        return
    if not show:
        from latentlm_evals.study.running import run_study

        folder = out or Path("runs") / "studies" / plan.name
        lines |= run_study(plan, runs, folder, kept, jobs=jobs or os.cpu_count() or 1, console=progress)
    if not lines:
        raise UserError(f"{kept} has no finished run of {path}: leave --table out to run them.")
    found = tabulated(plan, lines)
    waiting = [run.name for run in every if run.name not in lines]
    if as_json:
        alone = [one.arm for one in found if one.runs == 1]
        emit({"runs": len(every), "waiting": waiting, "one_seed": alone, "arms": [asdict(one) for one in found]})
        return
    from latentlm.cli.text import escaped
    from latentlm_evals.study.table import notes, tables

    console.print(*tables(plan, found), sep="\n")
    for note in notes(plan, waiting, found):
        console.print(f"[yellow]{escaped(note)}[/yellow]")
