"""How well the likelihoods of an evaluation were determined, and what was done to its requests: part of its results.

Counts are of one evaluation. Those of other processes are added by `plus`. Of latent decoders every item has its scores, one
for each request in the order in which lm-eval has them: in the results, and as `likelihoods` beside its answers in the samples
that lm-eval logs. A score is plain data, in which a number that is not finite is null:

    value, standard_error         nats
    quarter                       nats: the value at a quarter of the samples; null under four samples, and for `elbo`
    bias, uncertainty             nats by which the value may lie below the truth, and what it is good to; null where not known
    tolerance                     nats that it was to be good to
    effective_samples, samples    of a whole text the least and the most that one of its windows took
    settled                       share of its targets in windows whose weights say what more samples would find
    converged                     the uncertainty is within the tolerance
    method                        the estimator that it is by
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, MutableMapping, Sequence
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
    items: dict[Owner, list[Score]] = field(default_factory=dict)
    """Scores of each document's requests, in the order in which lm-eval has them; of latent decoders only."""

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

    def log(self, samples: Mapping[str, Sequence[MutableMapping[str, Any]]]) -> None:
        """Put the scores of every item into lm-eval's samples, {task: samples}, as `likelihoods`."""
        for task, logged in samples.items():
            for sample in logged:
                if (scores := self.items.get((task, sample["doc_id"]))) is not None:
                    sample["likelihoods"] = [score_facts(score) for score in scores]

    def as_json(self) -> dict[str, Any]:
        """Plain data for lm-eval's results, in which a number that is not finite is null."""
        tasks: dict[str, dict[int, list[Score]]] = {}
        for (task, document), scores in sorted(self.items.items()):
            tasks.setdefault(task, {})[document] = scores
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


def score_facts(score: Score) -> dict[str, float | int | bool | str | None]:
    """What a score is judged by, as plain data (see above)."""
    return {
        "value": _number(score.value),
        "standard_error": _number(score.standard_error),
        "quarter": _number(score.quarter),
        "bias": _number(score.bias),
        "uncertainty": _number(score.uncertainty),
        "tolerance": _number(score.tolerance),
        "effective_samples": _number(score.effective_samples),
        "samples": score.samples,
        "settled": score.settled,
        "converged": bool(score.converged),
        "method": score.method,
    }


def _of_task(items: Mapping[int, Sequence[Score]]) -> dict[str, Any]:
    """One task: the scores of its documents, and what their errors come to."""
    scores = [score for own in items.values() for score in own]
    errors = [score.standard_error for score in scores]  # that of one sample alone is infinite
    return {
        "requests": len(scores),
        "unconverged": sum(not score.converged for score in scores),
        "mean_standard_error": _number(sum(errors) / len(errors)),
        "largest_standard_error": _number(max(errors)),
        "items": {str(document): [score_facts(score) for score in own] for document, own in items.items()},
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
