"""How well the likelihoods of an evaluation were determined, and what was done to its requests: part of its results.

Counts are of one evaluation. Those of other processes are added by `plus`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latentlm.errors import UserError
from latentlm.likelihood import Score

Owner = tuple[str, int]
"""(task, document) of a request."""

_log = logging.getLogger("latentlm_evals")


@dataclass
class Scored:
    """How well the likelihoods of an evaluation were determined."""

    requests: int = 0
    largest_standard_error: float = 0.0
    """Nats, of one request, from the finite number of latent samples."""
    smallest_effective_samples: float = math.inf
    few_effective_samples: int = 0
    """Requests with fewer than a tenth of the samples: raise `samples`."""
    unconverged: int = 0
    """Requests that are not good to the tolerance (`Score.converged`)."""
    most_samples: int = 0
    near_ties: int = 0
    """Bits that rounding could flip: what may differ between batch sizes by more than rounding."""
    truncated: int = 0
    """Requests whose context was cut from the left to what the model can see."""
    joined: int = 0
    """Requests in which a token of the whole text spans context and continuation."""
    recalled: int = 0
    """Requests of which the answer, and its score, came from a `--use_cache` database."""
    items: dict[Owner, list[float]] = field(default_factory=dict)
    """Standard errors of each document's requests, nats, in the order in which lm-eval has them; of latent decoders only."""

    def add(self, scores: Sequence[Score]) -> None:
        """Count these scores. Raises UserError where one is not a number, which broken weights or too small a precision do."""
        for score in scores:
            if not math.isfinite(score.value):
                raise UserError(
                    f"A log-likelihood is {score.value}: the model's logits are not finite, or its precision is too small."
                )
            self.requests += 1
            self.largest_standard_error = max(self.largest_standard_error, score.standard_error)
            self.smallest_effective_samples = min(self.smallest_effective_samples, score.effective_samples)
            self.few_effective_samples += score.effective_samples < score.samples / 10
            self.unconverged += not score.converged
            self.most_samples = max(self.most_samples, score.samples)
            self.near_ties += score.near_ties

    def cut(self, cut: int, total: int, seen: int) -> None:
        """Count contexts of `total` requests that were cut to the `seen` tokens of the model; say so once in an evaluation."""
        if cut and not self.truncated:
            _log.warning(
                "latentlm: %d of %d contexts are longer than the %d tokens that the model sees: their beginnings are left out.",
                cut,
                total,
                seen,
            )
        self.truncated += cut

    def plus(self, other: Scored) -> None:
        """Add the counts of another process, whose documents are others."""
        self.requests += other.requests
        self.largest_standard_error = max(self.largest_standard_error, other.largest_standard_error)
        self.smallest_effective_samples = min(self.smallest_effective_samples, other.smallest_effective_samples)
        self.few_effective_samples += other.few_effective_samples
        self.unconverged += other.unconverged
        self.most_samples = max(self.most_samples, other.most_samples)
        self.near_ties += other.near_ties
        self.truncated += other.truncated
        self.joined += other.joined
        self.recalled += other.recalled
        self.items |= other.items

    def as_json(self) -> dict[str, Any]:
        """Plain data for lm-eval's results, in which a number that is not finite is null."""
        tasks: dict[str, dict[str, Any]] = {}
        for (task, document), errors in sorted(self.items.items()):
            tasks.setdefault(task, {})[str(document)] = [_number(error) for error in errors]
        return {
            "requests": self.requests,
            "largest_standard_error": _number(self.largest_standard_error),
            "smallest_effective_samples": _number(self.smallest_effective_samples),
            "few_effective_samples": self.few_effective_samples,
            "unconverged": self.unconverged,
            "most_samples": self.most_samples,
            "near_ties": self.near_ties,
            "truncated": self.truncated,
            "joined": self.joined,
            "recalled": self.recalled,
            "tasks": {task: _of_task(items) for task, items in tasks.items()},
        }


def verdict(facts: Mapping[str, Any], *, option: str) -> str | None:
    """What must be said of an evaluation's likelihoods, by the adapter's facts: how many are not good to the tolerance; None
    where all are. `option` sets the number of samples."""
    counted = facts["likelihoods"]
    if not counted["unconverged"]:
        return None
    good = f"{facts['tolerance']:g} nats (of a whole text: bits per byte)"
    remedy = f"{option} auto brings them nearer."
    if facts["max_samples"]:
        remedy = f"--max-samples above {facts['max_samples']} brings them nearer."
    return f"{counted['unconverged']:,} of {counted['requests']:,} likelihoods are not good to {good}; {remedy}"


def _of_task(items: dict[str, list[float | None]]) -> dict[str, Any]:
    """One task: the errors of its documents, and what they come to."""
    errors = [error for errors in items.values() for error in errors]
    known = [error for error in errors if error is not None]
    whole = len(known) == len(errors)  # one sample alone has no error
    return {
        "requests": len(errors),
        "mean_standard_error": sum(known) / len(known) if whole else None,
        "largest_standard_error": max(known) if whole else None,
        "items": items,
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
