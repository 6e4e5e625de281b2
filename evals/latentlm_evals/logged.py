"""Evaluations as lm-eval logs them: the value of every metric on every item, from any model type.

    Evaluation.read("free", Path("out/free"))         # a folder that `lm_eval --log_samples --output_path` wrote
    Evaluation.of("free", results)                    # what `simple_evaluate` returns
    write_evaluation(results, Path("out/free"))       # such a folder

An item is known by its doc_id and the hash of its document. The results file beside the samples says how a metric is
aggregated, which groups there are and which way is better; without it lm-eval's own metrics and no groups are taken.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentlm.config.reading import json_data, lines_of, open_plain, read_text, why_not
from latentlm.config.writing import check_writable, write_atomically
from latentlm.errors import UserError, short
from latentlm_evals.outputs import made_folder

ItemId = tuple[int, str]
"""(doc_id, hash of the document)."""
Metric = tuple[str, str]
"""(metric, filter), as in lm-eval's "exact_match,strict-match"."""

_SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<date>[^_]+)\.jsonl")


@dataclass
class LoggedTask:
    """One task's answers."""

    values: dict[Metric, dict[ItemId, Any]] = field(default_factory=dict)
    """What lm-eval aggregates: a number per item, or a pair such as (nats, bytes)."""
    targets: dict[ItemId, str] = field(default_factory=dict)
    """Hashes of the right answers."""
    prompts: dict[ItemId, str] = field(default_factory=dict)
    """Hashes of the prompts: they differ between numbers of shots and with a chat template."""
    reported: dict[Metric, float] = field(default_factory=dict)
    """lm-eval's own aggregates; empty without a results file."""
    aggregations: dict[str, str] = field(default_factory=dict)
    """Metric -> the aggregation that the task's file names."""
    higher_is_better: dict[str, bool | None] = field(default_factory=dict)
    version: Any = None
    likelihoods: int = 0
    """Of latent decoders: how many estimates the answers rest on."""
    unconverged: int = 0
    """Of them, those that are not good to the tolerance."""
    windows: str | None = None
    """How whole texts were cut, "disjoint" or "overlapping"; None of a task that has none."""


@dataclass
class Evaluation:
    """One evaluation of one model."""

    name: str
    tasks: dict[str, LoggedTask]
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Group -> all tasks below it."""
    group_values: dict[str, dict[Metric, float]] = field(default_factory=dict)
    """What lm-eval itself reports of a group."""
    complete: bool = True
    """False where no results file lay beside the samples."""
    older: list[str] = field(default_factory=list)
    """Tasks of which the folder holds earlier evaluations too."""

    @classmethod
    def of(cls, name: str, results: dict[str, Any]) -> Evaluation:
        """From lm-eval's results with their samples."""
        tasks = {task: _task(task, samples, results, name) for task, samples in results["samples"].items()}
        children = results.get("group_subtasks") or {}
        groups = {group: [task for task in _leaves(group, children) if task in tasks] for group in children if children[group]}
        values = {group: _numbers((results.get("results") or {}).get(group) or {}) for group in groups}
        return cls(name, tasks, groups, values, complete="results" in results)

    @classmethod
    def read(cls, name: str, folder: Path) -> Evaluation:
        """From a folder with samples_*.jsonl; of several evaluations of a task the latest counts. Raises UserError."""
        place = samples_folder(folder)
        if place is None:
            raise UserError(f"{folder} holds no samples_*.jsonl; make them with lm_eval --log_samples --output_path {folder}.")
        dated: dict[str, list[tuple[str, Path]]] = {}
        for file, task, date in _files(place):
            dated.setdefault(task, []).append((date, file))
        latest = {task: max(found) for task, found in dated.items()}
        tasks, groups, values, complete = {}, {}, {}, True
        for date in sorted({date for date, _ in latest.values()}):
            results = _results(place, date)
            complete = complete and results is not None
            found = {task: _lines(file) for task, (of, file) in latest.items() if of == date}
            with _as_logged(place):
                part = cls.of(name, {**(results or {}), "samples": found})
            tasks.update(part.tasks)
            groups.update({group: below for group, below in part.groups.items() if below})
            values.update(part.group_values)
        return cls(name, tasks, groups, values, complete, [task for task, found in dated.items() if len(found) > 1])


def write_evaluation(results: dict[str, Any], folder: Path) -> None:
    """Results with samples as `lm_eval --log_samples` writes them, to be compared again, or with other models'. lm-eval's own
    writer follows links and logs its errors, so it writes into a folder of its own. Raises UserError."""
    from lm_eval.loggers import EvaluationTracker

    check_evaluation(folder)
    made_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        tracker = EvaluationTracker(output_path=place)
        tracker.general_config_tracker.model_name_sanitized = "made"
        aggregated = {key: value for key, value in results.items() if key != "samples"}
        tracker.save_results_aggregated(results=aggregated, samples=results["samples"])
        for task, samples in results["samples"].items():
            tracker.save_results_samples(task_name=task, samples=[dict(sample) for sample in samples])
        made = sorted((Path(place) / "made").glob("*"))
        if len(made) < 1 + len(results["samples"]):
            raise UserError(f"lm-eval could not write its samples into {folder}: see its own message above. Is the disk full?")
        for file in made:
            write_atomically(folder / file.name, lambda path, file=file: file.rename(path), ours=lambda there: False)  # type: ignore[misc]


def check_evaluation(folder: Path) -> None:
    """Before any work: raise UserError unless `write_evaluation` can write into this folder, and the one above, themselves."""
    for part in (folder.parent, folder):
        if os.path.lexists(part) and (part.is_symlink() or not part.is_dir()):
            raise UserError(f"{part} is no folder, or a link to one, and stays as it is. Choose another folder with --out.")
    check_writable(folder / "new")


def samples_folder(path: Path) -> Path | None:
    """Where the samples lie: in the folder itself, or in the one folder that lm-eval made in it for the model's name; None
    where there are none. Raises UserError where several folders have some."""
    if not path.is_dir():
        return None
    if any(True for _ in _files(path)):
        return path
    below = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and any(True for _ in _files(folder))]
    if len(below) > 1:
        listed = ", ".join(str(folder) for folder in below)
        raise UserError(f"{path} holds the samples of several models; name the folder of one: {listed}.")
    return below[0] if below else None


def _files(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, task, date) of every file of samples."""
    for file in sorted(folder.iterdir()):
        if match := _SAMPLES.fullmatch(file.name):
            yield file, match["task"], match["date"]


def _results(folder: Path, date: str) -> dict[str, Any] | None:
    """The results file that was written with the samples of this date; its name begins with what `--output_path` says."""
    for file in sorted(folder.iterdir()):
        if file.name.endswith(f"_{date}.json"):
            found = _json(read_text(file, most=2**28), str(file))
            if "results" in found:
                return found
    return None


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """One at a time: samples hold whole documents."""
    try:
        with open_plain(file) as lines:
            for number, line in lines_of(lines, file):
                yield _json(line.decode("utf-8"), f"{file}, line {number}")
    except UnicodeDecodeError:
        raise UserError(f"{file}, line {number}: no text in UTF-8. Make the evaluation again.") from None
    except OSError as error:
        raise UserError(why_not(file, error)) from None


@contextmanager
def _as_logged(folder: Path) -> Iterator[None]:
    """What is taken for lm-eval's files has values of other kinds."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        said = short(f"{type(error).__name__}: {error}")
        raise UserError(f"{folder} is not as lm_eval --log_samples writes it ({said}). Make the evaluation again.") from None


def _json(text: str, source: str) -> dict[str, Any]:
    try:
        found = json_data(text, source=source)
    except UserError as error:
        raise UserError(f"{error} Was the evaluation cut off? Make it again.") from None
    if not isinstance(found, dict):
        raise UserError(f"{source} is not what lm_eval --log_samples writes.")
    return found


def _task(name: str, samples: Iterable[dict[str, Any]], results: dict[str, Any], model: str) -> LoggedTask:
    config = (results.get("configs") or {}).get(name) or {}
    task = LoggedTask(
        reported=_numbers((results.get("results") or {}).get(name) or {}),
        aggregations={
            entry["metric"]: entry["aggregation"]
            for entry in config.get("metric_list") or []
            if isinstance(entry.get("metric"), str) and isinstance(entry.get("aggregation"), str)
        },
        higher_is_better=(results.get("higher_is_better") or {}).get(name) or {},
        version=(results.get("versions") or {}).get(name),
        windows=_windows(results) if config.get("output_type") == "loglikelihood_rolling" else None,
    )
    for sample in samples:
        try:
            item = (int(sample["doc_id"]), str(sample["doc_hash"]))
            task.targets[item], task.prompts[item] = str(sample["target_hash"]), str(sample["prompt_hash"])
            found = {(metric, str(sample["filter"])): _value(sample[metric]) for metric in sample["metrics"]}
        except KeyError as error:
            raise UserError(
                f"the samples of {name} of {model} lack {error}: an older lm-eval made them; evaluate again."
            ) from None
        scores = [score for score in sample.get("likelihoods") or [] if isinstance(score, dict)]
        if sample["filter"] == next(iter(task.values), ("", sample["filter"]))[1]:  # an item has a line for each filter
            task.likelihoods += len(scores)
            task.unconverged += sum(not score.get("converged", True) for score in scores)
        for metric, value in found.items():
            items = task.values.setdefault(metric, {})
            if item in items:
                raise UserError(f"the samples of {name} of {model} hold doc_id {item[0]} twice; evaluate into an empty folder.")
            items[item] = value
    return task


def _windows(results: dict[str, Any]) -> str:
    """Of whole texts; other adapters' are lm-eval's own."""
    facts = (results.get("config") or {}).get("latentlm") or {}
    return str(facts.get("windows", "overlapping"))


def _value(value: Any) -> Any:
    """lm-eval writes numpy's booleans and small floats as text."""
    if not isinstance(value, str):
        return value
    try:
        return float({"True": "1", "False": "0"}.get(value, value))
    except ValueError:
        return value


def _numbers(metrics: dict[str, Any]) -> dict[Metric, float]:
    """{"acc,none": 0.5, ...} without standard errors and names."""
    found = {}
    for key, value in metrics.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            found[metric, filtered] = float(value)
    return found


def _leaves(group: str, children: dict[str, list[str]]) -> list[str]:
    """Every task below a group, through the groups in it."""
    found: dict[str, None] = {}
    for child in children[group]:
        found.update(dict.fromkeys(_leaves(child, children) if children.get(child) else [child]))
    return list(found)
