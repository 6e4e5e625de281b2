"""`latentlm schedules`: which KL schedules there are, what each does to a small run, which revive a collapsed latent.

    latentlm schedules list
    latentlm schedules plot --out runs/schedules
    latentlm schedules revive --seeds 2

The two experiments are in schedule_experiments.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from latentlm.cli.output import AsJson

app = typer.Typer(add_completion=False, no_args_is_help=True)

_EPILOG = """
Examples:

  latentlm schedules list

  latentlm schedules plot --schedules capacity,free_bits --steps 100

  latentlm schedules revive --seeds 2
"""
_PLOT_EPILOG = """
Examples:

  latentlm schedules plot

  latentlm schedules plot --schedules capacity,control_vae --steps 800 --set control_vae.integral=0.01

  latentlm schedules plot --recipe my.yaml --bits 0.5 --schedules free_bits,cyclical --image curves.png

What it writes: schedules.svg and schedules.json in --out.
"""
_REVIVE_EPILOG = """
Examples:

  latentlm schedules revive

  latentlm schedules revive --schedules free_bits,minimum_desired_rate --seeds 3 --json

What it writes: revive.json in --out.
"""

Names = Annotated[str | None, typer.Option("--schedules", help="Names, comma-separated. Default: all.", show_default=False)]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps of each run.")]
Out = Annotated[Path, typer.Option(help="Folder for the text, the curves and the numbers.")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="Another base model: a recipe by name or path.", show_default="built-in, 58k")
]
Bits = Annotated[float, typer.Option(min=0, help="Budget, capacity or set point of those that have one, bits per site.")]
Target = Annotated[
    float | None, typer.Option(help="GECO's cross-entropy, bits per target token.", show_default="2.08 on the built-in text")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="NAME.key=value: a setting of one schedule; repeatable.", show_default=False)
]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at the same time.")]


@app.callback(epilog=_EPILOG)
def _root() -> None:
    """KL schedules: list them, plot what each does, measure which revive a collapsed latent."""


@app.command("list", epilog="Examples:\n\n  latentlm schedules list\n\n  latentlm schedules list --json")
def list_schedules(as_json: AsJson = False) -> None:
    """Every registered schedule: what it does, its formula, where it is from."""
    from latentlm_evals import schedule_report
    from latentlm_evals.schedule_catalog import entries

    schedule_report.show_entries(entries(), as_json=as_json)


@app.command(epilog=_PLOT_EPILOG)
def plot(
    names: Names = None,
    steps: Steps = 400,
    out: Out = Path("runs/schedules"),
    recipe: RecipeName = None,
    bits: Bits = 3.0,
    target: Target = None,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and noise, the same for every run.")] = 0,
    image: Annotated[Path | None, typer.Option(help="The figure, .svg or .png.", show_default="OUT/schedules.svg")] = None,
    jobs: Jobs = 2,
    as_json: AsJson = False,
) -> None:
    """Train one small run per schedule, alike but for it, and draw KL, information and cross-entropy against steps."""
    from latentlm_evals.schedule_experiments import Settings, make_plot

    settings = Settings(_split(names), steps, out, recipe, bits, target, overrides or [], jobs, _command())
    make_plot(settings, seed=seed, image=image, as_json=as_json)


@app.command(epilog=_REVIVE_EPILOG)
def revive(
    names: Names = None,
    steps: Steps = 400,
    out: Out = Path("runs/schedules"),
    recipe: RecipeName = None,
    bits: Bits = 3.0,
    target: Target = None,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, max=1_000, help="Models that are collapsed and continued: seeds 0, 1, ...")] = 2,
    collapse_steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of the run that collapses.")] = 400,
    collapse_weight: Annotated[float, typer.Option(min=0, help="Its constant weight on the KL; 1 is the ELBO.")] = 1.0,
    jobs: Jobs = 2,
    as_json: AsJson = False,
) -> None:
    """Train a model until its latent has collapsed, then go on from its weights under each schedule."""
    from latentlm_evals.schedule_experiments import Settings, make_revival

    settings = Settings(_split(names), steps, out, recipe, bits, target, overrides or [], jobs, _command())
    make_revival(settings, seeds=seeds, collapse_steps=collapse_steps, collapse_weight=collapse_weight, as_json=as_json)


def _split(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _command() -> str:
    return " ".join(["latentlm", *sys.argv[1:]])
