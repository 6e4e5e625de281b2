"""Training runs for `latentlm schedules`: in memory, without a run folder, with held-out measurements along the way.

A run is a recipe, started afresh or from given weights (with a fresh optimiser), and what it leaves is a curve and a diagnosis.
Runs are independent, so several go side by side, each in a process of its own; what a run computes does not depend on how many
there are.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from latentlm.config import Recipe
from latentlm.interface import LatentDecoder
from latentlm.likelihood.diagnostics import diagnose
from latentlm.training.data import Prepared, prepare
from latentlm.training.evaluation import Excerpt, evaluate, excerpts
from latentlm.training.setup import make_model, make_stream, resolve
from latentlm.training.trainer import Trainer

Weights = dict[str, np.ndarray]
"""By name. Arrays, since tensors would travel between processes through shared memory that ends with the process."""


@dataclass(frozen=True)
class Point:
    """Held-out measurements after `step` optimiser steps. Bits; cross-entropy per target token under the posterior."""

    step: int
    kl: float
    """Per site."""
    information: float | None
    """What the units tell about the text, each by itself, per site; None where the posterior is not one of bits."""
    cross_entropy: float
    schedule: dict[str, float]
    """What the schedule logged in that step."""


@dataclass(frozen=True)
class Ending:
    """A diagnosis of the trained model on the held-out texts. Bits."""

    kl: float
    """Per site."""
    information: float | None
    """Per site, as in `Point`."""
    mutual_information: float | None
    """Per site, of the whole latent with its text."""
    cross_entropy: dict[str, float]
    """Per target token under latents from `posterior`, `prior`, `shuffled` (another text's), `constant`."""
    bound: float
    """Cross-entropy under the posterior plus full KL, per target token."""


@dataclass
class Outcome:
    """What a run leaves."""

    schedule: str
    seed: int
    settings: dict[str, Any]
    points: list[Point] = field(default_factory=list)
    ending: Ending | None = None
    weights: Weights | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the weights."""
        return {
            "schedule": self.schedule,
            "seed": self.seed,
            "settings": self.settings,
            "points": [asdict(point) for point in self.points],
            "ending": None if self.ending is None else asdict(self.ending),
        }


@dataclass(frozen=True)
class Task:
    """One run to make."""

    schedule: str
    recipe: Recipe
    every: int
    """Steps between measurements."""
    start: Weights | None = None
    keep_weights: bool = False


def run_all(tasks: list[Task], *, jobs: int, done: Callable[[Outcome], None]) -> list[Outcome]:
    """Run the tasks, `jobs` at a time, and return what they leave in their order; `done` is told of each as it ends."""
    if min(jobs, len(tasks)) <= 1:
        outcomes = []
        for task in tasks:
            outcomes.append(run(task))
            done(outcomes[-1])
        return outcomes
    found: dict[int, Outcome] = {}
    context = multiprocessing.get_context("spawn")  # a fork after torch has started its threads may hang
    with ProcessPoolExecutor(max_workers=min(jobs, len(tasks)), mp_context=context) as pool:
        futures = {pool.submit(run, task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            done(found[futures[future]])
    return [found[number] for number in range(len(tasks))]


def run(task: Task) -> Outcome:
    """Train one recipe and measure it."""
    if task.recipe.train.threads is not None:
        torch.set_num_threads(task.recipe.train.threads)
    prepared = prepare(task.recipe.data)
    recipe = resolve(task.recipe, tokenizer=prepared.tokenizer)
    model = make_model(recipe, "cpu")
    if task.start is not None:
        model.load_state_dict({name: torch.from_numpy(array) for name, array in task.start.items()})
    assert recipe.model.kl_schedule is not None, "checked when the schedule was chosen"
    outcome = Outcome(task.schedule, recipe.train.seed, recipe.model.kl_schedule.settings)
    trainer = Trainer(model, recipe.train, make_stream(recipe, prepared))
    texts = _texts(recipe, prepared)
    outcome.points = list(_points(trainer, texts, recipe, every=task.every))
    trainer.close()
    outcome.ending = _ending(model, texts, outcome.points[-1], seed=recipe.train.seed)
    if task.keep_weights:
        outcome.weights = {name: tensor.numpy(force=True).copy() for name, tensor in model.state_dict().items()}
    return outcome


def _texts(recipe: Recipe, prepared: Prepared) -> list[Excerpt]:
    assert recipe.train.context is not None, "the recipe is resolved"
    return excerpts(prepared.held_out, prepared.tokenizer, context=recipe.train.context, count=recipe.train.eval_documents)


def _points(trainer: Trainer, texts: list[Excerpt], recipe: Recipe, *, every: int) -> Iterator[Point]:
    """Train to the end; a point before the first step, every `every` steps, and at the end."""
    schedule: dict[str, float] = {}
    while True:
        if trainer.step % every == 0 or trainer.step == recipe.train.steps:
            report = evaluate(trainer.model, texts, recipe.train)
            yield Point(
                step=trainer.step,
                kl=report["kl_bits_per_site"],
                information=report.get("information_bits_per_site"),
                cross_entropy=report["cross_entropy"] / math.log(2),
                schedule=schedule,
            )
        if trainer.step == recipe.train.steps:
            return
        schedule = trainer.advance().schedule


def _ending(model: LatentDecoder, texts: list[Excerpt], last: Point, *, seed: int) -> Ending:
    """`diagnose` on the same windows as the curve."""
    found = diagnose(model, [[*text.window.inputs, text.window.targets[-1]] for text in texts], seed=seed)
    cross_entropy = {name: nats / math.log(2) for name, nats in found.cross_entropy.items()}
    return Ending(
        kl=last.kl,
        information=last.information,
        mutual_information=found.mutual_information_bits,
        cross_entropy=cross_entropy,
        bound=cross_entropy["posterior"] + found.kl_bits_per_token,
    )
