"""Train or load models, measure them alike on the same held-out text, and collect the results.

    comparison = run(["demo-vanilla", "demo-free"], [], Path("runs/demo"), settings=Settings(), console=Console())

A name is a recipe (trained first, side by side; a run that was begun goes on) or anything `zoo.load` takes.
All models are scored on the same held-out documents of the first recipe's data, each with its own tokenizer, per raw byte,
paired by document. Several runs (seeds) of one model are named together, with commas: each is measured, and the paired
differences of the tasks have the spread over them.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from latentlm import zoo
from latentlm.cli.text import escaped
from latentlm.config import DataConfig, Recipe, parse, read_yaml
from latentlm.errors import UserError, unknown_name
from latentlm.interface import LatentDecoder
from latentlm.likelihood.planning import Plan, plan
from latentlm.likelihood.scoring import texts_to_score
from latentlm.tokenizer import load_tokenizer
from latentlm.training.data import Corpus, load_documents
from latentlm.training.recipes import load_recipe, zoo_recipes
from latentlm.training.setup import make_model, resolve
from latentlm_evals import report
from latentlm_evals.jobs import Job, train_all
from latentlm_evals.logged import Evaluation, check_evaluation, write_evaluation
from latentlm_evals.measure import Precision, Text, add_differences, held_out_texts, measure, tokenized
from latentlm_evals.model_runs import shared_name, split_runs
from latentlm_evals.outputs import Outputs
from latentlm_evals.progress import Lines, status
from latentlm_evals.results import Comparison, ModelResult
from latentlm_evals.scored import verdict
from latentlm_evals.task_comparison import Model, compare_tasks
from latentlm_evals.trained import training_curves, training_facts

_EVALUATIONS = "evaluations"
"""Folder of what each model answered in the tasks, as lm-eval logs it."""


@dataclass(frozen=True)
class Settings:
    """How models are measured; see `latentlm compare --help`."""

    precision: Precision = field(default_factory=Precision)
    task_samples: int | Literal["auto"] = 16
    """Of each lm-eval request."""
    documents: int = 48
    document_bytes: int = 2048
    tasks: str = "short"
    include_path: Path | None = None
    limit: int | None = None
    seed: int = 0
    jobs: int = 2
    pictures: tuple[Path, ...] = ()
    """Shown at the end of the page."""
    captions: tuple[str, ...] = ()
    """Of the pictures, in their order, "HEADING: TEXT"; none, or one of each."""
    command: str = "latentlm compare"


@dataclass(frozen=True)
class Entry:
    """One model of the comparison: a name for the table, what `zoo.load` takes, and the recipe if it is to be trained."""

    name: str
    model: str
    recipe: str | None = None


@dataclass(frozen=True)
class Planned:
    """What measuring one model will take."""

    texts: Plan
    tasks: Plan | None
    """Of the tasks; None where there are none."""


@dataclass(frozen=True)
class _Chosen:
    """What is to be compared."""

    models: list[list[Entry]]
    """The runs of each."""
    recipes: list[Recipe]
    """Of the entries that are to be trained."""
    data: DataConfig
    tasks: list[str]

    @property
    def entries(self) -> list[Entry]:
        """Every run."""
        return [entry for runs in self.models for entry in runs]


def run(names: list[str], overrides: list[str], folder: Path, *, settings: Settings, console: Console) -> Comparison:
    """Compare; writes comparison.json, report.html and the evaluations, as lm-eval logs them, into `folder`. Raises UserError
    before any long work."""
    chosen = _chosen(names, overrides, folder, settings)
    outputs = comparison_outputs(folder)
    for entry in chosen.entries if chosen.tasks else ():
        check_evaluation(folder / _EVALUATIONS / entry.name)
    corpus = load_documents(chosen.data)
    _train(chosen.entries, chosen.recipes, overrides, folder, settings, console)
    texts = held_out_texts(corpus.held_out, count=settings.documents, limit=settings.document_bytes, seed=settings.seed)
    evaluations: dict[str, Evaluation] = {}
    results = [_measure(entry, texts, chosen.tasks, folder, evaluations, settings, console) for entry in chosen.entries]
    comparison = _collect(results, corpus, texts, chosen.data, settings)
    if chosen.tasks and len(chosen.models) > 1:
        runs = [tuple(evaluations[entry.name] for entry in own) for own in chosen.models]
        labels = shared_name([[run.name for run in own] for own in runs])
        comparison.paired_tasks = compare_tasks([Model(label, own) for label, own in zip(labels, runs, strict=True)])
    outputs.write("comparison.json", comparison.to_json() + "\n")
    outputs.write("report.html", report.page(comparison, settings.pictures, settings.captions))
    return comparison


def dry(names: list[str], overrides: list[str], folder: Path, *, settings: Settings, console: Console) -> dict[str, Planned]:
    """What the likelihoods of each model and its tasks will take; nothing is trained or
    written. A model that is yet to be trained is timed with the weights that it begins with, a byte standing for a token.
    Raises UserError."""
    chosen = _chosen(names, overrides, folder, settings)
    held_out = load_documents(chosen.data).held_out
    texts = held_out_texts(held_out, count=settings.documents, limit=settings.document_bytes, seed=settings.seed)
    recipes = iter(chosen.recipes)
    plans = {}
    for entry in chosen.entries:
        with status(console, f"Timing a window of {entry.name}"):
            if entry.recipe:
                model = make_model(resolve(next(recipes), tokenizer=load_tokenizer("bytes")), "cpu")
                model.tokenizer = load_tokenizer("bytes")
            else:
                model = zoo.load(entry.model, weights="required")
            tokens = [tokenized(model, text) for text in texts]
            requests, _, how = texts_to_score(model, tokens, **asdict(settings.precision), seed=settings.seed)
            tasks = _tasks_plan(model, chosen.tasks, settings) if chosen.tasks else None
            plans[entry.name] = Planned(plan(model, requests, how), tasks)
    return plans


def _tasks_plan(model: LatentDecoder, tasks: list[str], settings: Settings) -> Plan:
    """Of the tasks."""
    from latentlm_evals.dry_run import DryLM
    from latentlm_evals.evaluation import run_tasks

    adapter = DryLM(model, **_of_tasks(settings))
    run_tasks(adapter, tasks, limit=settings.limit, include_path=settings.include_path)
    return adapter.plan()


def _of_tasks(settings: Settings) -> dict[str, Any]:
    """How tasks are answered: whole texts in the same windows, whatever the decoder."""
    limit = settings.precision.max_samples
    return {"samples": settings.task_samples, "max_samples": limit, "seed": settings.seed, "windows": "disjoint"}


def _chosen(names: list[str], overrides: list[str], folder: Path, settings: Settings) -> _Chosen:
    """Models, recipes, data and tasks, all known to exist, as the pictures are. Raises UserError."""
    for picture in settings.pictures:
        report.check_picture(picture)
    report.check_captions(settings.pictures, settings.captions)
    models = [[_entry(run, folder) for run in split_runs(name)] for name in names]
    entries = [entry for runs in models for entry in runs]
    if len({entry.name for entry in entries}) < len(entries) or not entries:
        listed = ", ".join(entry.name for entry in entries)
        raise UserError(f"Name at least one model or recipe, each once and under a name of its own, not: {listed or 'none'}.")
    if overrides and not any(entry.recipe for entry in entries):
        raise UserError(f"{overrides[0]} changes recipes, but only models were named ({', '.join(names)}); leave it out.")
    recipes = [load_recipe(entry.recipe, overrides) for entry in entries if entry.recipe]
    return _Chosen(models, recipes, _common_data(entries, recipes), _tasks(settings))


def _entry(name: str, folder: Path) -> Entry:
    """A trained card or a folder is a model; everything else that has a recipe is trained."""
    path = Path(name)
    if path.is_dir():
        return Entry(path.name, name)
    if path.is_file():
        if "card_version" in read_yaml(path):
            return Entry(path.stem, name)
        return Entry(path.stem, str(folder / path.stem), recipe=name)
    cards = {card.name: card for card in zoo.list()}
    if name in cards and (cards[name].status == "trained" or name not in zoo_recipes()):
        return Entry(name, name)
    if name in zoo_recipes():
        return Entry(name, str(folder / name), recipe=name)
    known = {*cards, *zoo_recipes()}
    raise unknown_name("model or recipe", name, known, remedy="Your own are given by path: a run folder or a recipe.yaml.")


def _common_data(entries: list[Entry], recipes: list[Recipe]) -> DataConfig:
    """The data that all were or will be trained on, so that what one is scored on is held out for each. Raises UserError.

    A model that does not say what it was trained on (no recipe.yaml beside it) is taken at its user's word."""
    known = {entry.name: recipe.data for entry, recipe in zip([e for e in entries if e.recipe], recipes, strict=True)}
    for entry in entries:
        if entry.recipe is None and (data := _data_of(entry)) is not None:
            known[entry.name] = data
    first = next(iter(known.values()), DataConfig())
    for name, data in known.items():
        differing = [key for key in ("path", "held_out", "seed", "max_documents", "pattern", "text_field", "split")
                     if getattr(data, key) != getattr(first, key)]  # fmt: skip
        if differing:
            raise UserError(
                f"{name} and {next(iter(known))} have different data ({', '.join(differing)}): one may have been trained on "
                "what the other is scored on. Compare models of one data section."
            )
    return first


def _data_of(entry: Entry) -> DataConfig | None:
    """The data that a model was trained on, from the recipe beside it."""
    path = Path(entry.model) if Path(entry.model).is_dir() else zoo.find(entry.model).folder
    recipe = path / "recipe.yaml"
    return parse(Recipe, read_yaml(recipe), source=str(recipe)).data if recipe.is_file() else None


def _tasks(settings: Settings) -> list[str]:
    """Task names, known to exist and loaded once before any long work."""
    from latentlm_evals.suites import SUITE_TASKS
    from latentlm_evals.task_names import resolve_tasks

    if settings.tasks == "none":
        return []
    named = [name.strip() for name in settings.tasks.split(",") if name.strip()]
    return resolve_tasks(SUITE_TASKS if settings.tasks == "short" else named, settings.include_path)


def comparison_outputs(folder: Path) -> Outputs:
    """The files of a comparison. Raises UserError where they cannot be written."""
    return Outputs(folder, numbers="comparison.json", keys={"models"}, beside=["report.html"])


def _train(
    entries: list[Entry], recipes: list[Recipe], overrides: list[str], folder: Path, settings: Settings, console: Console
) -> None:
    """Train what is not trained yet."""
    trained = [entry for entry in entries if entry.recipe]
    jobs = [
        Job(entry.name, str(entry.recipe), folder / entry.name, recipe.train.steps, overrides)
        for entry, recipe in zip(trained, recipes, strict=True)
    ]
    if jobs:
        parallel = min(settings.jobs, len(jobs))
        listed = ", ".join(job.name for job in jobs)
        console.print(escaped(f"Training {listed} on the same text in the same order ({parallel} at a time)."))
        train_all(jobs, parallel=parallel, console=console)


def _measure(
    entry: Entry,
    texts: list[Text],
    tasks: list[str],
    folder: Path,
    evaluations: dict[str, Evaluation],
    settings: Settings,
    console: Console,
) -> ModelResult:
    """Load and measure one model; what it answered in the tasks goes into `evaluations` and the folder."""
    started = time.monotonic()
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True) as bars:
        what = f"Measuring {entry.name} on {len(texts)} held-out documents"
        bar, lines = bars.add_task(escaped(what), total=None), Lines(console)
        lines(what, "begun")

        def show(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)
            lines(what, f"{done} of {total}")

        model = zoo.load(entry.model, weights="required")
        result = measure(
            model,
            entry.name,
            texts,
            precision=settings.precision,
            seed=settings.seed,
            progress=show,
        )
    result.training = training_facts(Path(entry.model), model)
    result.curves.update(training_curves(Path(entry.model)))
    if tasks:
        from latentlm_evals.adapter import LatentLM
        from latentlm_evals.evaluation import run_tasks, task_results

        console.print(escaped(f"Running {', '.join(tasks)} (lm-eval) on {entry.name}"))
        adapter = LatentLM(model, **_of_tasks(settings))
        answered = run_tasks(adapter, tasks, limit=settings.limit, include_path=settings.include_path)
        result.tasks = task_results(answered)
        result.tasks_verdict = verdict(answered["config"]["latentlm"], option="--task-samples")
        evaluations[entry.name] = Evaluation.of(entry.name, answered)
        write_evaluation(answered, folder / _EVALUATIONS / entry.name)
    console.print(escaped(f"Measured {entry.name} in {time.monotonic() - started:.0f} s."))
    return result


def _collect(
    results: list[ModelResult], corpus: Corpus, texts: list[Text], config: DataConfig, settings: Settings
) -> Comparison:
    add_differences(results)
    packages = ("latentlm", "torch", "lm-eval")
    return Comparison(
        models=results,
        held_out={
            "documents": len(texts),
            "bytes": sum(len(text.data) for text in texts),
            "of": f"{len(corpus.held_out)} held-out documents of {config.path}",
            "fingerprint": corpus.fingerprint()[:16],
        },
        scored=(
            f"the first {settings.document_bytes:,} bytes of each (and end-of-text where it ends there), in disjoint windows "
            "of the model's context."
        ),
        task_scoring=f"latent models: operational, {settings.task_samples} samples",
        settings={
            "latent samples": settings.precision.samples,
            "tolerance": settings.precision.tolerance,
            "most latent samples": settings.precision.max_samples,
            "latent samples of tasks": settings.task_samples,
            "seed": settings.seed,
            "bytes per document": settings.document_bytes,
            "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        },
        command=settings.command,
        versions={name: importlib.metadata.version(name) for name in packages},
    )


