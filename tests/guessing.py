"""A model that guesses, and its evaluations as lm-eval itself logs them: any task at no cost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker

from latentlm_evals.evaluation import task_manager


class Guesser(LM):
    """Draws every answer from its seed and the request."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _draw(self, request: Instance) -> random.Random:
        return random.Random(repr((self.seed, request.args)))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(-10 * self._draw(request).random(), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return [-len(request.args[0]) * (1 + self._draw(request).random()) for request in requests]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self._draw(request).choice([")", "])", "}"]) for request in requests]


def evaluated(seed: int, tasks: Sequence[str], *, limit: int | None = 10, include_path: Path | None = None) -> dict[str, Any]:
    """lm-eval's results of a guesser, samples included."""
    results = lm_eval.simple_evaluate(
        Guesser(seed), tasks=list(tasks), limit=limit, task_manager=task_manager(tasks, include_path), bootstrap_iters=0
    )
    assert results is not None
    return dict(results)


def logged(folder: Path, results: dict[str, Any]) -> Path:
    """The folder that `lm_eval --log_samples --output_path FOLDER` leaves, with a folder of the model's name in it."""
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args("guesser", "model=some/guesser", None, None, False)
    tracker.save_results_aggregated({k: v for k, v in results.items() if k != "samples"}, samples=results["samples"])
    for task, samples in results["samples"].items():
        tracker.save_results_samples(task, samples)
    return folder
