"""`latentlm compare`: train or load several models, measure them alike, and lay them side by side in a table and a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from latentlm.cli.output import AsJson, emit

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

  latentlm compare demo-vanilla demo-free

  latentlm compare vanilla-tiny free-tiny --out runs/tiny

  latentlm compare demo-vanilla demo-free train.steps=300 data.path=my_texts/

  latentlm compare runs/mine/a runs/mine/b --tasks none --json
"""


@app.command(epilog=_EPILOG)
def compare(
    models: Annotated[
        list[str], typer.Argument(help="Recipes (trained first), cards or run folders, and key=value overrides of the recipes.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for runs, results and page. Default: runs/compare-NAMES.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Models trained at the same time.")] = 2,
    samples: Annotated[int, typer.Option(min=1, help="Latent samples per text for the honest likelihood.")] = 16,
    documents: Annotated[int, typer.Option(min=2, help="Held-out documents to score.")] = 48,
    document_bytes: Annotated[int, typer.Option(min=1, help="Bytes of each that are scored, from its start.")] = 2048,
    tasks: Annotated[
        str, typer.Option(help='lm-eval tasks, comma-separated; "short" for the shipped ones, "none" for none.')
    ] = "short",
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw in the measurements.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train or load several models, measure them alike, and lay them side by side."""
    from rich.console import Console

    from latentlm_evals.comparison import Settings, run
    from latentlm_evals.tables import show

    names = [text for text in models if "=" not in text]
    overrides = [text for text in models if "=" in text]
    console = Console(stderr=as_json)
    settings = Settings(
        samples=samples,
        documents=documents,
        document_bytes=document_bytes,
        tasks=tasks,
        limit=limit,
        seed=seed,
        jobs=jobs,
        command=" ".join(["latentlm", *sys.argv[1:]]),
    )
    folder = out or Path("runs") / ("compare-" + "-".join(Path(name).stem for name in names))
    comparison = run(names, overrides, folder, settings=settings, console=console)
    if as_json:
        emit(comparison.to_json())
    else:
        show(comparison, console=console)
        console.print(f"Page: {folder / 'report.html'}   numbers: {folder / 'comparison.json'}")
