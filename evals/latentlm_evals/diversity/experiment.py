"""The experiment from end to end: the 2x2 of every model, and each latent decoder against each plain one at equal pass@1.

    found = run(["runs/vanilla", "runs/free"], Settings(), console=console)

*Latent-only* is greedy decoding with a fresh z for each sample. Each plain decoder gets, for each latent one, the temperature
at which it has the same pass@1, chosen on prompts that are not measured. Then both have the same chance with one sample, and
pass@k says whose further samples are worth more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn

from latentlm.config import memory
from latentlm.config.checking import whole
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.training.data.synthetic import PREFIX
from latentlm_evals.diversity.matching import MOST_TRIES, Match, matched
from latentlm_evals.diversity.measures import Values, at, estimate, measured
from latentlm_evals.diversity.sampling import Sampler, Sharing, Source, of_the_data
from latentlm_evals.diversity.task import Prompt, Task, make_task, plan_source
from latentlm_evals.intervals import Interval
from latentlm_evals.loading import load_model
from latentlm_evals.progress import Lines, status

_SAMPLE = 2**10  # bytes of a continuation of a prompt, at least


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is generated."""

    task: str | None = None
    """None: that which the models were trained on."""
    prompts: int = 200
    calibration: int = 100
    answers: int = 2
    """Right ones that a prompt has at least."""
    samples: int = 32
    temperature: float = 1.0
    prefill: Source = "posterior"
    seed: int = 0
    batch_size: int = 512
    device: str | None = None


@dataclass(frozen=True)
class Cell:
    """One model decoded in one way; measures by name."""

    model: str
    temperature: float
    """0 = greedy."""
    latents: Sharing | None
    """None: the model has none."""
    matched_to: str | None
    """The model whose latent-only pass@1 the temperature was chosen for."""
    measures: dict[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """Latent-only answers of a model against a plain decoder at the temperature of equal pass@1."""

    model: str
    baseline: str
    match: Match
    """On the prompts for calibration."""
    differences: dict[str, Interval]
    """The model's measures minus the baseline's, on the measured prompts, paired."""


@dataclass(frozen=True)
class Found:
    """Everything that was measured."""

    task: str
    settings: Settings
    right_answers: float
    """Of a measured prompt, on the mean."""
    data: dict[str, Interval]
    """Measures of as many answers drawn from the data's own distribution."""
    cells: list[Cell]
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Work:
    """What a model will take."""

    model: str
    continuations: int
    """At most."""
    seconds: float
    """At the speed of one batch."""


@dataclass(frozen=True)
class _Ready:
    """Models and task, all known to fit."""

    task: Task
    samplers: dict[str, Sampler]

    @property
    def plain(self) -> list[str]:
        """Names of the models without latents."""
        return [name for name, sampler in self.samplers.items() if not sampler.model.has_latents]

    @property
    def latent(self) -> list[str]:
        """Names of the others."""
        return [name for name, sampler in self.samplers.items() if sampler.model.has_latents]


# ------------------------------------------------------------------------------------------------------------- running


def run(names: Sequence[str], settings: Settings, *, console: Console) -> Found:
    """Generate and measure. Raises UserError for what cannot be meant, before anything is generated."""
    ready = _ready(names, settings, console)
    prompts, seed = ready.task.measured, settings.seed
    cells: list[Cell] = []
    comparisons: list[Comparison] = []
    latent_only: dict[str, dict[str, Values]] = {}
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True) as bars:
        draw, lines = _Drawing(bars), Lines(console)

        def cell(name: str, temperature: float, sharing: Sharing, matched_to: str | None = None) -> dict[str, Values]:
            sampler = ready.samplers[name]
            lines(name, f"temperature {temperature:.2f}, z {sharing}" if sampler.model.has_latents else
                  f"temperature {temperature:.2f}", now=True)  # fmt: skip
            values = measured(prompts, draw(name, sampler, prompts, temperature, sharing))
            latents = sharing if sampler.model.has_latents else None
            cells.append(Cell(name, temperature, latents, matched_to, _estimates(values, seed)))
            return values

        for name in ready.latent:
            cell(name, 0.0, "shared")
            latent_only[name] = cell(name, 0.0, "fresh")
            cell(name, settings.temperature, "shared")
            cell(name, settings.temperature, "fresh")
        for baseline in ready.plain:
            cell(baseline, 0.0, "fresh")
            cell(baseline, settings.temperature, "fresh")
            for name, match in _matches(ready, baseline, draw).items():
                values = cell(baseline, match.temperature, "fresh", matched_to=name)
                gains = {measure: latent_only[name][measure] - values[measure] for measure in values}
                comparisons.append(Comparison(name, baseline, match, _estimates(gains, seed)))
    own = measured(prompts, of_the_data(prompts, settings.samples, seed=seed))
    right = sum(len(prompt.answers) for prompt in prompts) / len(prompts)
    return Found(ready.task.name, settings, right, _estimates(own, seed), cells, comparisons)


def _estimates(values: dict[str, Values], seed: int) -> dict[str, Interval]:
    return {name: estimate(own, seed=seed) for name, own in values.items()}


@dataclass
class _Drawing:
    """Answers of a cell, with a bar that says which."""

    bars: Progress
    bar: TaskID | None = None

    def __call__(
        self, name: str, sampler: Sampler, prompts: list[Prompt], temperature: float, sharing: Sharing, *, why: str = ""
    ) -> list[list[str]]:
        how = f"{name}: {'greedy' if temperature == 0 else f'temperature {temperature:.3g}'}"
        how += f", z {sharing}" if sampler.model.has_latents else ""
        if self.bar is not None:
            self.bars.remove_task(self.bar)
        bar = self.bar = self.bars.add_task(how + why, total=len(prompts) * sampler.rows(temperature, sharing))
        return sampler.answers(prompts, temperature, sharing, advance=lambda rows: self.bars.advance(bar, rows))


def _matches(ready: _Ready, baseline: str, draw: _Drawing) -> dict[str, Match]:
    """For each latent decoder the temperature of a plain one, chosen on the prompts for calibration."""
    prompts = ready.task.calibration

    def pass_at_1(name: str, temperature: float) -> float:
        found = draw(name, ready.samplers[name], prompts, temperature, "fresh", why=" (choosing a temperature)")
        return float(measured(prompts, found)[at(1)].mean())

    once = cache(lambda temperature: pass_at_1(baseline, temperature))  # the same steps for every latent decoder
    return {name: matched(once, pass_at_1(name, 0.0)) for name in ready.latent}


# ------------------------------------------------------------------------------------------------------------- planning


def plan(names: Sequence[str], settings: Settings, *, console: Console) -> list[Work]:
    """What each model will take: nothing but one batch of each is generated. Raises UserError as `run` does."""
    ready = _ready(names, settings, console)
    rows, tries = settings.samples, settings.samples * settings.calibration
    found = []
    for name, sampler in ready.samplers.items():
        if sampler.model.has_latents:  # a shared z is drawn by one more continuation
            count = settings.prompts * (3 * rows + 2) + (tries * len(ready.plain))
        else:
            count = settings.prompts * (1 + rows * (1 + len(ready.latent))) + MOST_TRIES * tries * bool(ready.latent)
        found.append(Work(name, count, count * _seconds(sampler, ready.task.measured)))
    return found


def _seconds(sampler: Sampler, prompts: list[Prompt]) -> float:
    """Of a continuation, in a batch."""
    some = prompts[: max(1, sampler.batch_size // sampler.samples)]
    started = time.monotonic()
    sampler.answers(some, 1.0, "fresh")
    return (time.monotonic() - started) / (len(some) * sampler.samples)


def _ready(names: Sequence[str], settings: Settings, console: Console) -> _Ready:
    """Load models and make the task; a continuation of each shows that they fit. Raises UserError."""
    if len(set(names)) < len(names):
        raise UserError(f"Name each model once, not: {', '.join(names)}.")
    for name in ("prompts", "calibration", "answers", "batch_size"):
        whole(name, getattr(settings, name), least=1)
    whole("samples", settings.samples, least=2)
    memory.check_count("samples", settings.samples, each=_SAMPLE)
    if settings.task is not None:
        plan_source(settings.task)  # refused before anything is loaded
    short = [Path(name).name or name for name in names]
    labels = short if len(set(short)) == len(short) else list(names)
    with status(console, "Loading"):
        models = {
            label: load_model(name, device=settings.device, advise=False) for label, name in zip(labels, names, strict=True)
        }
        task = make_task(
            settings.task or _trained_on(models), prompts=settings.prompts,
            calibration=settings.calibration if len({model.has_latents for model in models.values()}) == 2 else 0,
            least=settings.answers, seed=settings.seed,
        )  # fmt: skip
        samplers = {
            label: Sampler(
                model=model, length=task.length, samples=settings.samples, prefill=settings.prefill, seed=settings.seed,
                batch_size=settings.batch_size,
            )
            for label, model in models.items()
        }  # fmt: skip
        for label, sampler in samplers.items():
            try:
                sampler.answers(task.measured[:1], 0.0, "shared")
            except UserError as error:
                raise UserError(f"{label}: {error}") from None
    return _Ready(task, samplers)


def _trained_on(models: dict[str, LatentDecoder]) -> str:
    """The source that all models were trained on, as their cards say. Raises UserError."""
    paths = {
        label: str(model.card.training.get("data", {}).get("path", "")) if model.card else ""
        for label, model in models.items()
    }
    if len(set(paths.values())) == 1 and (path := next(iter(paths.values()))).startswith(PREFIX):
        return path
    said = "; ".join(f"{label}: {path or 'not known'}" for label, path in paths.items())
    raise UserError(f"The models were not trained on one synthetic source ({said}): name the task with --task.")
