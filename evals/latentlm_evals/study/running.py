"""Run a study: train what is not trained, measure what is not measured, keep a line for each run that is finished.

A run is an ordinary run folder, so one that was stopped goes on. The folder's name has a hash of the recipe, the line one of
how it was measured too: an arm that has changed since is run anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from latentlm import zoo
from latentlm.cli.text import escaped
from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.likelihood import score_continuations, score_texts
from latentlm.likelihood.diagnostics import Diagnostics, diagnose
from latentlm.training.data import load_documents
from latentlm.training.data.synthetic import PREFIX, source
from latentlm.zoo.accounting import cost_of
from latentlm_evals.fingerprint import commit, machine_facts
from latentlm_evals.jobs import Job, train_all
from latentlm_evals.letter.measure import GROUPS, generated
from latentlm_evals.measure import Precision, Text, held_out_texts, tokenized
from latentlm_evals.study.plan import Measures, Run, Study
from latentlm_evals.study.results import Line, add_line, check_lines, estimate, finished, read_lines
from latentlm_evals.trained import training_facts

_LETTER = f"{PREFIX}letter"
HELD_OUT_SEED = 1_000_000
"""Of the texts of a synthetic source: no run is trained with it."""


def run_study(
    study: Study, runs: Sequence[Run], folder: Path, results: Path, *, jobs: int, console: Console
) -> dict[str, Line]:
    """Train and measure what has no line yet; the finished runs by name. Raises UserError."""
    check_lines(results)
    done = finished(runs, read_lines(results))
    waiting = [run for run in runs if run.name not in done]
    console.print(escaped(f"{len(waiting)} of {len(runs)} runs have no result yet; {jobs} at a time, in {folder}."))

    by_name = {run.name: run for run in waiting}

    def measure(job: Job, say: Callable[[str], None]) -> None:
        run = by_name[job.name]
        add_line(results, measured(study, run, folder / run.folder, progress=_progress(say)))
        say("measured")

    train_all([_job(run, folder) for run in waiting], parallel=jobs, console=console, finished=measure)
    return finished(runs, read_lines(results))


def _progress(say: Callable[[str], None]) -> Callable[[int, int], None]:
    return lambda done, total: say(f"measuring: {done} of {total} windows")


def _job(run: Run, folder: Path) -> Job:
    return Job(run.name, run.recipe, folder / run.folder, run.resolved.train.steps, run.overrides)


# ----------------------------------------------------------------------------------------------------------- measuring


def measured(
    study: Study, run: Run, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> Line:
    """The line of a trained run."""
    model = zoo.load(out, device="cuda" if torch.cuda.is_available() else "cpu")
    line = {
        "study": study.name,
        "arm": run.arm,
        "seed": run.seed,
        "facts": run.facts,
        "commit": commit(),
        "machine": machine_facts(model),
        "training": _training(model, out),
        **likelihood_of(model, run.resolved, study.measure, progress=progress),
        **({"groups": asdict(generated(model, groups=GROUPS, seed=0))} if run.resolved.data.path == _LETTER else {}),
    }
    found = estimate(line)
    return line | {"bits_per_byte": found.value, "converged": found.converged(study.measure.tolerance)}


def likelihood_of(
    model: LatentDecoder, recipe: Recipe, measures: Measures, *, progress: Callable[[int, int], None] | None = None
) -> Line:
    """Scores and latents on held-out texts of the recipe's data."""
    texts, exact = texts_of(recipe, measures)
    tokens = [tokenized(model, text) for text in texts]
    precision = Precision(measures.method, tolerance=measures.tolerance, max_samples=measures.max_samples)
    keys = [text.id for text in texts]
    if measures.given:
        requests = [in_two(model, text, measures.given) for text in texts]
        scores = score_continuations(model, requests, **asdict(precision), keys=keys, progress=progress)
        targets = [len(continuation) for _, continuation in requests]
    else:
        scores = score_texts(model, tokens, **asdict(precision), keys=keys, progress=progress)
        targets = [len(text) - 1 for text in tokens]
    return {
        "method": scores[0].method if model.has_latents else "exact",
        "samples": max(score.samples for score in scores),
        "scores": [score.value for score in scores],
        "standard_errors": [score.standard_error for score in scores],
        "quarters": [_finite(score.quarter) for score in scores],
        "sixteenths": [_finite(score.sixteenth) for score in scores],
        "freedoms": [_finite(score.freedom) for score in scores],
        "settled": [score.settled for score in scores],
        "islands": [[_finite(nats) for nats in score.islands] for score in scores],
        **({} if exact is None else {"exact": exact}),
        "bytes": [len(text.data) - measures.given for text in texts],
        "targets": targets,
        **_latents(model, diagnose(model, tokens, batch_size=32)),
    }


def in_two(model: LatentDecoder, text: Text, given: int) -> tuple[list[int], list[int]]:
    """The tokens of a text's first `given` bytes, and those of the rest, which are encoded by themselves."""
    start = tokenized(model, Text(text.id, text.data[:given], whole=False))
    return start, tokenized(model, Text(text.id, text.data[given:], text.whole))[1:]


def texts_of(recipe: Recipe, measures: Measures) -> tuple[list[Text], list[float] | None]:
    """The held-out texts of a recipe's data, and their exact log-likelihoods (nats) where the source has a density."""
    if recipe.data.path.startswith(PREFIX):
        made = source(recipe.data.path.removeprefix(PREFIX))
        drawn = made.texts(measures.texts, seed=HELD_OUT_SEED)
        return [Text(str(number), text, whole=True) for number, text in enumerate(drawn)], (-made.nats(drawn)).tolist()
    documents = [document for document in load_documents(recipe.data).held_out if len(document.data) > measures.given]
    return held_out_texts(documents, count=measures.texts, limit=measures.bytes, seed=0), None


def _training(model: LatentDecoder, out: Path) -> dict[str, Any]:
    facts = training_facts(out, model) or {}
    if missing := [key for key in ("steps", "tokens", "seconds", "tokens_per_second") if key not in facts]:
        raise UserError(f"neither metrics nor card of {out} say how it was trained ({missing[0]}): remove it to train it anew.")
    return {
        **{key: facts[key] for key in ("steps", "tokens", "seconds", "tokens_per_second")},
        "peak_memory_mib": model.card.training.get("peak_memory_mib") if model.card else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "operations_per_token": cost_of(model, dtype=torch.float32).training_flops_per_token,
    }


def _latents(model: LatentDecoder, found: Diagnostics) -> dict[str, Any]:
    """What z carries; of several latents together, live units and information added up."""
    each = list(found.latents.values()) or [found]
    return {
        "kl_bits": found.kl_bits_per_token,
        "information_bits": sum(one.mutual_information_bits or 0.0 for one in each),
        "live_bits": sum(one.active_units or 0 for one in each),
        "units": sum(latent.dims for latent in model.latents.values()),
        "persistence": [value for one in each for value in one.persistence],
        "cross_entropy": found.cross_entropy,
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
