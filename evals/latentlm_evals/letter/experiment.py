"""The experiment from end to end: models that are shipped, or trained here; what they show; what it says.

    found = show(console=console)                             # from the zoo's cards, within a minute
    train(folder, names, jobs=2, console=console)             # the weights, each run resumable; likelihoods measured
    ship(folder, shelf)                                       # cards of the first seeds, with the likelihoods of all

A run's likelihood is measured once, when it is trained, and kept in its card under `scores.synthetic`, one entry per seed.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from latentlm import zoo
from latentlm.config import Card, as_yaml, parse, read_yaml
from latentlm.errors import UserError, unknown_name
from latentlm.interface import LatentDecoder
from latentlm.training.recipes import load_recipe
from latentlm.zoo.files import write_text_atomically
from latentlm.zoo.shelves import CARD, add_run
from latentlm_evals.jobs import Job, train_all
from latentlm_evals.letter.arms import BASELINE, BUDGETS, Arm, Seen, arms, outcomes
from latentlm_evals.letter.groups import Group, Prefill
from latentlm_evals.letter.measure import GROUPS, PREFILLS, TEXTS, Generated, generated, likelihood, pictured

SCORES = "synthetic"
"""The key of a card's `scores` that holds the likelihoods."""
Progress = Callable[[int, int], None]


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
    pictures: dict[Prefill, dict[str, list[Group]]]


def chosen_arms(patterns: Sequence[str]) -> dict[str, Arm]:
    """The arms whose names fit, all where nothing is said. Raises UserError for a pattern that none fits."""
    known = arms()
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise unknown_name("model of the experiment", pattern, known)
    return {name: arm for name, arm in known.items() if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)}


@dataclass(frozen=True)
class Settings:
    """What is generated and measured."""

    letter: str = "K"
    """Of the prompt in the picture."""
    groups: int = GROUPS
    texts: int = TEXTS
    """Whose likelihood is measured."""
    seed: int = 0
    score: bool = False
    """Measure likelihoods of cards too, which else are those that the cards have."""


def show(patterns: Sequence[str], settings: Settings, *, console: Console) -> list[Shown]:
    """Generate with the cards of the zoo. Raises UserError where they are not there."""
    wanted = chosen_arms(patterns)
    cards = {card.name for card in zoo.list() if card.status == "trained"}
    there = [name for name in wanted if name in cards]
    if BASELINE not in cards or not there:
        raise UserError(
            f"The zoo has no trained {BASELINE if BASELINE not in cards else ', '.join(wanted)}: train with "
            "`latentlm reproduce synthetic --train`."
        )
    found: list[Shown] = []
    with console.status("Generating") as status:
        baseline = generated(zoo.load(BASELINE), groups=settings.groups, seed=settings.seed)
        for name in there:
            status.update(f"Generating with {name}")
            found.append(_shown(wanted[name], baseline, settings))
    return found


def _shown(arm: Arm, baseline: Generated, settings: Settings) -> Shown:
    model = zoo.load(arm.name)
    assert model.card is not None
    own = baseline if arm.budget is None else generated(model, groups=settings.groups, seed=settings.seed)
    outcome: list[dict[str, Any]] = []
    if arm.budget is not None:
        seen = Seen(own.independent["prior"], own.shared["prior"], baseline.independent["prior"])
        outcome = outcomes(arm.budget, seen)
    prefills = PREFILLS if arm.budget is not None else PREFILLS[:1]
    return Shown(
        arm.name,
        arm.label,
        None if arm.budget is None else BUDGETS[arm.budget],
        own,
        [_scored(model, settings.texts)] if settings.score else model.card.scores.get(SCORES, []),
        outcome,
        {prefill: pictured(model, settings.letter, prefill=prefill, seed=settings.seed) for prefill in prefills},
    )


def _scored(model: LatentDecoder, texts: int, progress: Progress | None = None) -> dict[str, Any]:
    """The likelihood of a model, with the seed that it was trained with."""
    assert model.card is not None
    return {"seed": model.card.training.get("seed", 0), **asdict(likelihood(model, texts=texts, progress=progress))}


# ------------------------------------------------------------------------------------------------------------ training


def runs_of(folder: Path, patterns: Sequence[str]) -> dict[str, tuple[Arm, int, Path]]:
    """Every run of the chosen arms: its arm, seed and folder, the first seeds first."""
    wanted = chosen_arms(patterns).values()
    each = sorted(((arm, seed) for arm in wanted for seed in range(arm.seeds)), key=lambda pair: pair[1])
    return {f"{arm.name}-{seed}": (arm, seed, folder / f"{arm.name}-{seed}") for arm, seed in each}


def train(
    folder: Path, patterns: Sequence[str], overrides: Sequence[str], settings: Settings, *, jobs: int, console: Console
) -> None:
    """Train what is not trained in `folder`, then measure the likelihoods that are missing. Raises UserError."""
    runs = runs_of(folder, patterns)
    waiting = []
    for name, (arm, seed, out) in runs.items():
        changes = [*arm.overrides, f"train.seed={seed}", f"data.seed={seed}", *overrides]
        if not (out / CARD).is_file():
            waiting.append(Job(name, arm.recipe, out, load_recipe(arm.recipe, changes).train.steps, changes))
    console.print(f"{len(waiting)} of {len(runs)} runs to train in {folder}, {jobs} at a time.")
    train_all(waiting, parallel=jobs, console=console)
    for name, (_, _, out) in runs.items():
        measure(name, out, settings, console=console)


def measure(name: str, out: Path, settings: Settings, *, console: Console) -> dict[str, Any]:
    """The likelihood of a run, measured where its card has none."""
    card = parse(Card, read_yaml(out / CARD), source=str(out / CARD))
    if SCORES in card.scores:
        return card.scores[SCORES][0]  # type: ignore[no-any-return]
    with console.status(f"{name}: the likelihood") as status:
        found = _scored(zoo.load(out), settings.texts, lambda done, total: status.update(f"{name}: {done} of {total} texts"))
    _write_scores(out / CARD, card, [found])
    console.print(f"{name}: {found['excess_nats']:+.4f} ± {found['standard_error']:.4f} nats above the exact density")
    return found


def _write_scores(path: Path, card: Card, found: list[dict[str, Any]]) -> None:
    kept = card.model_copy(update={"scores": {**card.scores, SCORES: found}})
    write_text_atomically(path, as_yaml(kept, exclude_none=True))


def ship(folder: Path, patterns: Sequence[str], shelf: Path, settings: Settings, *, console: Console) -> None:
    """Cards of the first seeds on a shelf, each with the likelihoods of all its seeds. Raises UserError."""
    for name, arm in chosen_arms(patterns).items():
        outs = [folder / f"{name}-{seed}" for seed in range(arm.seeds)]
        missing = [str(out) for out in outs if not (out / CARD).is_file()]
        if missing:
            console.print(f"{name} stays as it is: {', '.join(missing)} is not trained.")
            continue
        found = [measure(out.name, out, settings, console=console) for out in outs]
        entry = add_run(outs[0], name=name, shelf=shelf, replace=True)
        _write_scores(entry.path, entry.card, found)
        console.print(f"{name}: {entry.folder}")
