"""How well the likelihoods of an evaluation were determined: part of its results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latentlm.likelihood import Score


@dataclass
class Scored:
    """How well the likelihoods of a run were determined."""

    requests: int = 0
    largest_standard_error: float = 0.0
    """Nats, of one request, from the finite number of latent samples."""
    smallest_effective_samples: float = math.inf
    few_effective_samples: int = 0
    """Requests with fewer than a tenth of the samples: raise `samples`."""
    near_ties: int = 0
    """Bits that rounding could flip: what may differ between batch sizes by more than rounding."""

    def add(self, scores: Sequence[Score]) -> None:
        """Count these scores."""
        for score in scores:
            self.requests += 1
            self.largest_standard_error = max(self.largest_standard_error, score.standard_error)
            self.smallest_effective_samples = min(self.smallest_effective_samples, score.effective_samples)
            self.few_effective_samples += score.effective_samples < score.samples / 10
            self.near_ties += score.near_ties
