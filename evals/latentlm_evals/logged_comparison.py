"""`latentlm compare` of evaluations that are made already: folders of `lm_eval --log_samples`, from any model type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from latentlm.errors import UserError, resolved
from latentlm_evals import report
from latentlm_evals.comparison import comparison_outputs
from latentlm_evals.logged import Evaluation, samples_folder
from latentlm_evals.model_runs import shared_name, split_runs
from latentlm_evals.results import TaskComparison
from latentlm_evals.task_comparison import Model, compare_tasks


def are_logged(names: Sequence[str]) -> bool:
    """Whether the arguments are folders of samples. Raises UserError where some are and some are models."""
    runs = [run for name in names for run in split_runs(name)]
    logged = [run for run in runs if samples_folder(Path(run)) is not None]
    if logged and len(logged) < len(runs):
        other = next(run for run in runs if run not in logged)
        raise UserError(
            f"{logged[0]} is a folder of lm-eval's samples and {other} is not: evaluate {other} with --log_samples first, or "
            "name models only."
        )
    return bool(logged)


def compare_folders(names: Sequence[str], tasks: Sequence[str], folder: Path, *, command: str) -> TaskComparison:
    """Compare every model with the first; writes comparison.json and report.html into `folder`. Raises UserError."""
    if len(names) < 2:
        raise UserError(f"Name at least two models' folders of samples, not only {', '.join(names)}.")
    paths = [[Path(run) for run in split_runs(name)] for name in names]
    repeated = [path for path, count in Counter(resolved(path) for own in paths for path in own).items() if count > 1]
    if repeated:
        raise UserError(f"{repeated[0]} is named twice; name each folder once.")
    short = Counter(path.name for own in paths for path in own)
    labels = [[path.name if path.name and short[path.name] == 1 else str(path) for path in own] for own in paths]
    models = [
        Model(name, tuple(Evaluation.read(label, path) for label, path in zip(own_labels, own, strict=True)))
        for name, own_labels, own in zip(shared_name(labels), labels, paths, strict=True)
    ]
    outputs = comparison_outputs(folder)
    found = compare_tasks(models, tasks)
    outputs.write("comparison.json", found.to_json() + "\n")
    outputs.write("report.html", report.tasks_page(found, command))
    return found
