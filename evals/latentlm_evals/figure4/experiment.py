"""The experiment from end to end: models that are shipped, or trained here; what they show; what it says.

    found = show([], Settings(), console=console)             # from the zoo's cards, within a minute
    train([], folder, results, jobs=2, console=console)       # the weights, as a study (study.yaml), every run resumable
    ship([], folder, results, shelf, console=console)         # cards of the first seeds

A run's likelihood is measured once, when it is trained; a card has those of all seeds of its arm under `scores.synthetic`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from latentlm import zoo
from latentlm.cli.text import escaped
from latentlm.config import as_yaml
from latentlm.config.writing import write_text
from latentlm.errors import UserError
from latentlm.zoo.shelves import CARD, add_run
from latentlm_evals.figure4.arms import BASELINE, BUDGETS, Seen, budget_of, label, outcomes
from latentlm_evals.letter.groups import Agreement, Group, Prefill
from latentlm_evals.letter.measure import GROUPS, PREFILLS, Generated, Made, made, pictured
from latentlm_evals.letter.resampling import Interval, intervals, resampled
from latentlm_evals.progress import status
from latentlm_evals.study.plan import Run, Study, chosen, read_study, runs_of
from latentlm_evals.study.results import Line, estimate, finished, read_lines
from latentlm_evals.study.running import likelihood_of, run_study

HERE = Path(__file__).parent
SCORES = "synthetic"
"""The key of a card's `scores` that holds the likelihoods."""


@dataclass(frozen=True)
class Shown:
    """One model: what generation shows of it, what is known of its likelihood, and which criteria of its outcome are met."""

    name: str
    label: str
    budget: float | None
    """kappa, bits per token; None without latents."""
    generated: Generated
    likelihoods: list[dict[str, Any]]
    """One for each seed; empty where nothing was measured."""
    outcome: list[dict[str, Any]]
    """Of the seed that is judged, each criterion with its value, an interval over groups, and whether it is met and decided;
    `others`: the values of further seeds, where a card keeps them, and whether these meet it."""
    intervals: dict[str, dict[Prefill, dict[str, Interval]]]
    """Of 95%, over groups: of `generated`, by the same names."""
    judged: list[int]
    """The seeds of which the outcome is known: the card's own first."""
    seeds: int
    """How many there are of the arm."""
    pictures: dict[Prefill, dict[str, list[Group]]]


@dataclass(frozen=True)
class Settings:
    """What is generated and measured."""

    letter: str = "K"
    """Of the prompt in the picture."""
    groups: int = GROUPS
    seed: int = 0
    shelf: Path | None = None
    """Where the cards are; None: the zoo's."""
    score: bool = False
    """Measure likelihoods of cards too, which else are those that the cards have."""


def the_study(texts: int | None = None) -> Study:
    """The study of this experiment, or one that measures fewer texts."""
    study = read_study(HERE / "study.yaml")
    return study if texts is None else study.model_copy(update={"measure": study.measure.model_copy(update={"texts": texts})})


# ------------------------------------------------------------------------------------------------------------- showing


def show(patterns: Sequence[str], settings: Settings, *, console: Console) -> list[Shown]:
    """Generate with the cards of the zoo, or of a shelf. Raises UserError where they are not there."""
    study = the_study()
    names = chosen(study, patterns)
    models = {card.name: card.name for card in zoo.list() if card.status == "trained"}
    if settings.shelf is not None:
        models = {name: str(settings.shelf / name) for name in study.arms if (settings.shelf / name / CARD).is_file()}
    there = [name for name in names if name in models]
    if BASELINE not in models or not there:
        where = "The zoo" if settings.shelf is None else settings.shelf
        raise UserError(
            f"{where} has no trained {BASELINE if BASELINE not in models else ', '.join(names)}: train with "
            "`latentlm reproduce synthetic --train`."
        )
    found: list[Shown] = []
    with status(console, "Generating with the baseline") as update:
        baseline = made(zoo.load(models[BASELINE]), groups=settings.groups, seed=settings.seed)
        for name in there:
            update(f"Generating with {name}")
            found.append(_shown(study, name, models[name], baseline, settings, update))
    return found


def _shown(
    study: Study, name: str, path: str, baseline: Made, settings: Settings, update: Callable[[str], None]
) -> Shown:
    model, budget = zoo.load(path), budget_of(name)
    assert model.card is not None
    own = baseline if budget is None else made(model, groups=settings.groups, seed=settings.seed)
    seed = model.card.training.get("seed", 0)
    likelihoods = model.card.scores.get(SCORES, [])
    if settings.score:
        update(f"Measuring the likelihood of {name}")
        run = next(run for run in runs_of(study, HERE) if run.arm == name)
        likelihoods = [summary(study, {"seed": seed, **likelihood_of(model, run.resolved, study.measure)})]
    draws = {
        kind: {prefill: resampled(groups, seed=settings.seed) for prefill, groups in by_prefill.items()}
        for kind, by_prefill in (("independent", own.independent), ("shared", own.shared))
    }
    outcome, further = [], []
    if budget is not None:
        vanilla = baseline.agreements.independent["prior"]
        seen = Seen(own.agreements.independent["prior"], own.agreements.shared["prior"], vanilla)
        plain = resampled(baseline.independent["prior"], seed=settings.seed)
        others = zip(draws["independent"]["prior"], draws["shared"]["prior"], plain, strict=True)
        outcome = outcomes(budget, seen, [Seen(*other) for other in others])
        further = [row for row in likelihoods if row["seed"] != seed and row.get("groups", {}).get("shared")]
        for row in further:
            alone, same = (Agreement(**row["groups"][kind]["prior"]) for kind in ("independent", "shared"))
            for one, other in zip(outcome, outcomes(budget, Seen(alone, same, vanilla)), strict=True):
                one.setdefault("others", []).append({"seed": row["seed"], "value": other["value"], "met": other["met"]})
    prefills = PREFILLS if budget is not None else PREFILLS[:1]
    return Shown(
        name=name,
        label=label(name),
        budget=None if budget is None else BUDGETS[budget],
        generated=own.agreements,
        likelihoods=likelihoods,
        outcome=outcome,
        intervals={kind: {prefill: intervals(each) for prefill, each in own.items()} for kind, own in draws.items()},
        judged=[seed, *(row["seed"] for row in further)] if outcome else [],
        seeds=max(study.arms[name].seeds or study.seeds, len(likelihoods)),
        pictures={prefill: pictured(model, settings.letter, prefill=prefill, seed=settings.seed) for prefill in prefills},
    )


def summary(study: Study, line: Line) -> dict[str, Any]:
    """What a card keeps of a run's likelihood: nats per character and end-of-text, above the source's own density."""
    found, targets = estimate(line), sum(line["targets"])
    each = [exact - value for exact, value in zip(line["exact"], line["scores"], strict=True)]
    size = targets / len(each)
    return {
        "seed": line["seed"],
        "excess_nats": sum(each) / targets,
        "standard_error": statistics.stdev(each) / math.sqrt(len(each)) / size,
        "good_to": found.uncertainty * math.log(2) * sum(line["bytes"]) / targets,
        "converged": found.converged(study.measure.tolerance),
        "method": f"{line['method']}, at most {line['samples']} samples, {len(each)} texts",
        **{key: line[key] for key in ("kl_bits", "information_bits", "live_bits", "cross_entropy", "groups") if key in line},
    }


# ------------------------------------------------------------------------------------------------------------ training


def train(
    patterns: Sequence[str], overrides: Sequence[str], folder: Path, results: Path, *, texts: int, jobs: int, console: Console
) -> tuple[Study, list[Run], list[Line]]:
    """Train and measure what has no line in `results`; the runs and their lines. Raises UserError."""
    study = _changed(the_study(texts), overrides)
    names = chosen(study, patterns)
    runs = [run for run in runs_of(study, HERE) if run.arm in names]
    lines = run_study(study, runs, folder, results, jobs=jobs, console=console)
    return study, runs, list(lines.values())


def _changed(study: Study, overrides: Sequence[str]) -> Study:
    """The study with other settings of every arm. Raises UserError."""
    settings = dict(study.set)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f'"{override}" is not of the form key=value (for example train.steps=500).')
        settings[key] = value
    return study.model_copy(update={"set": settings})


def ship(study: Study, runs: Sequence[Run], folder: Path, results: Path, shelf: Path, *, console: Console) -> None:
    """Cards of the first seeds on a shelf, each with the likelihoods of all its seeds. Raises UserError."""
    lines = finished(runs, read_lines(results))
    for first in (run for run in runs if run.seed == 0):
        own = [line for line in lines.values() if line["arm"] == first.arm]
        entry = add_run(folder / first.folder, name=first.arm, shelf=shelf, replace=True)
        scores = {**entry.card.scores, SCORES: [summary(study, line) for line in own]}
        write_text(entry.path, as_yaml(entry.card.model_copy(update={"scores": scores}), exclude_none=True))
        console.print(escaped(f"{first.arm}: {entry.folder}"))
