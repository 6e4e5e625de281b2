"""The two experiments of `latentlm schedules`, from settings to files. What can be refused is refused before training.

plot     one run per schedule from the same initial weights: curves (schedules.svg, schedules.json)
revive   a run under a constant weight until the latent has collapsed, for each seed; from its weights, with a fresh
         optimiser, a run per schedule of equal length (revive.json)
"""

from __future__ import annotations

import functools
import json
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from latentlm import plugins
from latentlm.cli.text import escaped
from latentlm.composed import complete
from latentlm.config import Recipe
from latentlm.config.writing import check_replaceable, write_atomically
from latentlm.errors import UserError, did_you_mean
from latentlm_evals import schedule_bench, schedule_report
from latentlm_evals.figures import save
from latentlm_evals.outputs import Outputs, is_picture, made_folder
from latentlm_evals.progress import Lines
from latentlm_evals.schedule_catalog import check_names
from latentlm_evals.schedule_plot import draw
from latentlm_evals.schedule_runs import Outcome, Task, run_all

_POINTS = 40  # measurements of a curve that is drawn
_REVIVAL_POINTS = 10


@dataclass(frozen=True)
class Settings:
    """What both experiments ask for; see `latentlm schedules plot --help`."""

    names: list[str] | None
    steps: int
    out: Path
    recipe: str | None
    bits: float
    target: float | None
    overrides: list[str]
    jobs: int
    command: str

    def __post_init__(self) -> None:
        """Raises UserError for what is no number, whether or not a schedule that runs asks for it."""
        for option, number in (("bits", self.bits), ("target", self.target)):
            if number is not None and not math.isfinite(number):
                raise UserError(f"--{option} is {number}, which is no finite number of bits.")


def make_plot(settings: Settings, *, seed: int, image: Path | None, as_json: bool) -> None:
    """Train, draw, write, print. Raises UserError before any training."""
    names = _names(settings)
    image = image or settings.out / "schedules.svg"
    if image.suffix not in (".svg", ".png"):
        raise UserError(f'--image "{image}" should end in .svg or .png.')
    outputs = Outputs(settings.out, numbers="schedules.json", keys={"runs", "steps"}, beside=["schedules.svg"])
    made_folder(image.parent, remedy="choose another file with --image")
    check_replaceable(image, is_picture, kind="a picture of the same kind")
    every = max(1, settings.steps // _POINTS)
    tasks = [Task(name, recipe, every) for name, recipe in _recipes(settings, names, seed=seed)]
    console = Console(stderr=True)
    with _progress(console, len(tasks), "training") as done:
        outcomes = run_all(tasks, jobs=settings.jobs, done=done)
    result = {**_provenance(settings), "seed": seed, "runs": [outcome.to_dict() for outcome in outcomes]}
    outputs.write("schedules.json", json.dumps(result, indent=1) + "\n")
    what = "the built-in text" if settings.recipe is None else settings.recipe
    figure = draw(outcomes, title=f"Held out: {what}, {settings.steps} steps, seed {seed}")
    write_atomically(image, functools.partial(save, figure, kind=image.suffix[1:], dpi=150), ours=is_picture)
    schedule_report.show_endings(outcomes, result, as_json=as_json)
    console.print(escaped(f"Figure: {image}   curves: {settings.out / 'schedules.json'}"), highlight=False)


def make_revival(settings: Settings, *, seeds: int, collapse_steps: int, collapse_weight: float, as_json: bool) -> None:
    """Collapse, continue, measure, write, print. Raises UserError before any training."""
    names = _names(settings)
    outputs = Outputs(settings.out, numbers="revive.json", keys={"runs", "collapsed"})
    continued = {seed: _recipes(settings, names, seed=seed) for seed in range(seeds)}
    weighted = {"weight": collapse_weight}
    collapsing = []
    for seed in continued:
        base = schedule_bench.base_recipe(settings.recipe, folder=settings.out, steps=collapse_steps, seed=seed)
        recipe = schedule_bench.with_schedule(base, "constant", weighted, [])
        collapsing.append(Task("collapsed", recipe, every=collapse_steps, keep_weights=True))
    console = Console(stderr=True)
    with _progress(console, len(collapsing), "collapsing") as done:
        collapsed = run_all(collapsing, jobs=settings.jobs, done=done)
    tasks = [
        Task(name, recipe, every=max(1, settings.steps // _REVIVAL_POINTS), start=start.weights)
        for start in collapsed
        for name, recipe in continued[start.seed]
    ]
    with _progress(console, len(tasks), "continuing") as done:
        outcomes = run_all(tasks, jobs=settings.jobs, done=done)
    found = {"collapsed": [run.to_dict() for run in collapsed], "runs": [run.to_dict() for run in outcomes]}
    facts = {"seeds": seeds, "collapse_steps": collapse_steps, "collapse_weight": collapse_weight}
    result = {**_provenance(settings), **facts, **found}
    outputs.write("revive.json", json.dumps(result, indent=1) + "\n")
    schedule_report.show_revival(collapsed, outcomes, result, as_json=as_json)
    console.print(escaped(f"Numbers: {settings.out / 'revive.json'}"), highlight=False)


def _names(settings: Settings) -> list[str]:
    """The schedules to run, and a check of the overrides' names. Raises UserError."""
    names = sorted(plugins.names("kl_schedule")) if settings.names is None else check_names(settings.names)
    if not names:
        raise UserError("--schedules names none; leave it out to take all.")
    for text in settings.overrides:
        name, dot, _ = text.partition("=")[0].partition(".")
        if not dot or name not in names:
            hint = did_you_mean(name, names)
            raise UserError(f'--set "{text}" is not NAME.key=value with the name of one of the schedules to run.{hint}')
    return names


def _recipes(settings: Settings, names: list[str], *, seed: int) -> list[tuple[str, Recipe]]:
    """The base recipe under each schedule. Raises UserError."""
    base = schedule_bench.base_recipe(settings.recipe, folder=settings.out, steps=settings.steps, seed=seed)
    event_dims = complete(base.model, plugin_names=base.plugins or None).event_dims  # a silent recipe takes the decoder's
    target = schedule_bench.CROSS_ENTROPY_BITS if settings.recipe is None and settings.target is None else settings.target
    found = []
    for name in names:
        chosen = schedule_bench.settings_for(
            name, steps=settings.steps, bits=settings.bits, event_dims=event_dims, target_bits=target
        )
        found.append((name, schedule_bench.with_schedule(base, name, chosen, settings.overrides)))
    return found


@contextmanager
def _progress(console: Console, count: int, what: str) -> Iterator[Callable[[Outcome], None]]:
    """A bar over the runs, or lines where there is no terminal; gives what is to be called when one ends."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} runs"),
        TextColumn("{task.fields[last]}"), TimeElapsedColumn(),
    )  # fmt: skip
    lines, ended = Lines(console), 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=count, last="")

        def done(outcome: Outcome) -> None:
            nonlocal ended
            ended, last = ended + 1, f"{outcome.schedule}, seed {outcome.seed}"
            progress.update(bar, advance=1, last=last)
            lines(what, f"{ended}/{count} runs, {last}", now=ended == count)

        yield done


def _provenance(settings: Settings) -> dict[str, Any]:
    machine = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    return {"command": settings.command, "machine": machine, "steps": settings.steps, "recipe": settings.recipe or "built-in"}
