"""`latentlm reproduce`: experiments of the literature, repeated by one command."""

from __future__ import annotations

import functools
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from latentlm.cli.output import AsJson, as_json, emit
from latentlm.cli.text import escaped
from latentlm.errors import UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Repeat published experiments.")

_EPILOG = """
Examples:

  latentlm reproduce synthetic

  latentlm reproduce synthetic --only "free-synthetic-full-*" --letter K --seed 1

  latentlm reproduce synthetic --train --jobs 2 --ship my_shelf

  latentlm reproduce synthetic --shelf my_shelf

  latentlm reproduce synthetic --train --only "*-1-8" train.steps=3000 --runs runs/short
"""


@app.callback()
def _root() -> None:
    """Repeat published experiments."""


_TRAINING = ("overrides", "ship", "texts", "runs", "results", "jobs")
_SHOWING = ("score", "groups", "letter", "seed", "shelf", "out")
"""Options of what is shown, which mean nothing where models are trained."""


def _refuse_idle(context: typer.Context, *, train: bool) -> None:
    """Raise UserError for an option that would do nothing."""
    for name in _SHOWING if train else _TRAINING:
        value, source = context.params.get(name), context.get_parameter_source(name)
        if value is None or source is None or source.name == "DEFAULT":
            continue
        odd = value[0] if name == "overrides" else f"--{name}"
        if not train:
            raise UserError(f"{odd} is about training, and nothing is trained: add --train.")
        raise UserError(f"{odd} is about what is shown, and --train shows nothing: leave it out, and show the models later.")


@app.command(epilog=_EPILOG)
def synthetic(
    context: typer.Context,
    overrides: Annotated[list[str] | None, typer.Argument(help="With --train: settings to change.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Folder of picture and numbers.")] = Path("runs/synthetic"),
    only: Annotated[list[str] | None, typer.Option(help="Names or patterns of the models. Default: all.")] = None,
    letter: Annotated[str, typer.Option(help="Of the prompt in the picture.")] = "K",
    seed: Annotated[int, typer.Option(min=0, help="Of what is generated.")] = 0,
    groups: Annotated[int, typer.Option(min=2, max=10_000, help="Groups of five of each kind, for the table.")] = 26,
    texts: Annotated[int, typer.Option(min=2, max=10**6, help="With --train: texts whose likelihood is measured.")] = 500,
    train: Annotated[bool, typer.Option("--train", help="Train the models; what was begun goes on.")] = False,
    runs: Annotated[Path, typer.Option(help="With --train: folder of the runs.")] = Path("runs/synthetic/train"),
    results: Annotated[
        Path | None, typer.Option(help="With --train: file that keeps a line for each finished run. Default: in --runs.")
    ] = None,
    ship: Annotated[Path | None, typer.Option(help="With --train: put cards of the models on this shelf.")] = None,
    shelf: Annotated[Path | None, typer.Option(help="Folder of cards, as --ship makes it. Default: the zoo's own.")] = None,
    score: Annotated[bool, typer.Option("--score", help="Measure the likelihoods again (minutes a model).")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="With --train: runs at a time. Default: one per core.")] = None,
    as_json_: AsJson = False,
) -> None:
    """Figure 4 of the Free Transformer (Fleuret 2025, section 4.1): what z holds at each KL budget, drawn and in numbers."""
    from rich.console import Console

    from latentlm_evals.figure4 import experiment, table
    from latentlm_evals.figure4.figure import KINDS, pictures
    from latentlm_evals.figures import save, svg
    from latentlm_evals.outputs import Outputs, made_folder

    console, progress = Console(), Console(stderr=True)
    patterns = only or []
    settings = experiment.Settings(letter=letter, groups=groups, seed=seed, shelf=shelf, score=score)
    if len(letter) != 1 or not ("A" <= letter <= "Z"):
        raise UserError(f'--letter "{letter}" is none of the 26 capitals.')
    _refuse_idle(context, train=train)
    if train:
        kept, at_once = results or runs / "results.jsonl", jobs or os.cpu_count() or 1
        made_folder(runs, remedy="choose another folder with --runs")
        study, done, lines = experiment.train(
            patterns, overrides or [], runs, kept, texts=texts, jobs=at_once, console=progress
        )
        if ship is not None:
            experiment.ship(study, done, runs, kept, ship, console=progress)
        elif not as_json_:
            console.print(escaped(f"Each run in {runs} is a model; --ship SHELF makes cards of them."))
        if as_json_:
            emit(lines)
        return
    drawn = [f"figure4-{kind}.{ending}" for kind in KINDS for ending in ("svg", "png")]
    outputs = Outputs(out, numbers="synthetic.json", keys={"label", "generated"}, beside=drawn)
    found = experiment.show(patterns, settings, console=progress)
    outputs.write("synthetic.json", as_json([asdict(one) for one in found]) + "\n")
    for kind, figure in pictures(found).items():
        outputs.write(f"figure4-{kind}.svg", svg(figure))
        outputs.write(f"figure4-{kind}.png", functools.partial(save, figure, kind="png", dpi=110))
    if as_json_:
        emit([asdict(one) for one in found])
    else:
        table.show(found, console=console)
        console.print(escaped(f"Pictures: {out}/figure4-*.svg and .png   numbers: {out / 'synthetic.json'}"))
