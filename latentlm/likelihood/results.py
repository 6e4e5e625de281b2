"""From K log-weights to a score: log-mean-exp, its standard error, and the effective sample size.

    value               log (1/K) sum_k w_k
    standard error      jackknife: s^2 = (K-1)/K sum_k (L_k - mean L)^2, L_k the value without sample k
    effective samples   (sum w)^2 / sum w^2, between 1 and K

The delta method's error, sd(w) / (mean(w) sqrt(K)), can never exceed 1 nat however badly one weight dominates; the jackknife's
can, so it is the one reported. It says how far the value moves from draw to draw. On texts so long that few samples carry the
weight, `iwae` is moreover below the log-likelihood by an amount that no spread of the weights reveals: use more samples.

Legend: B requests, K samples. All numbers are nats, float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Method = Literal["operational", "iwae", "prior", "elbo", "joint"]

METHODS: dict[str, str] = {
    "operational": "density of what generate samples: latents from the encoder on the context alone, then from the prior",
    "iwae": "importance-weighted bound on the log-likelihood, posterior as proposal; tight as samples grow",
    "prior": "mean over samples from the prior: unbiased for the likelihood, useless for long texts",
    "elbo": "lower bound on the log-likelihood; does not converge to it",
    "joint": "log-likelihood of context and continuation together, by iwae: only for ranking one question's options",
}
"""Every method with one line on what its number is."""


_ALONE = 1.1
"""Fewer effective samples than this: one sample has all the weight, however small K is."""


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one request."""

    value: float
    """Nats, over all tokens of the request."""
    standard_error: float
    """Nats; 0 for an exact score, infinite where a single sample cannot tell."""
    effective_samples: float
    """Between 1 and `samples`; the smallest of a text's windows. For `elbo`, which weights nothing, all of them."""
    samples: int
    """K; 0 where the score is exact."""
    tokens: int
    """Targets that were scored."""
    method: str
    greedy: bool | None = None
    """Every target is the argmax of the predictive mixture given those before it; None if not asked for."""
    near_ties: int = 0
    """Bits whose uniform number fell so near its threshold that floating-point rounding can flip them."""
    warnings: tuple[str, ...] = ()
    proposal: str = ""
    """What latents were drawn from: "posterior" (and weighted), or "target" (a prior, an encoder of the context alone), where
    there is no encoder, its posterior is a point mass, or no site predicts a target that it has seen; by latent where they
    differ. Empty without latents. Of a text in windows, the first one's."""

    def plus(self, other: Score) -> Score:
        """The next window of the same text: nats add up, errors in quadrature."""
        return replace(
            self,
            value=self.value + other.value,
            standard_error=math.hypot(self.standard_error, other.standard_error),
            effective_samples=min(self.effective_samples, other.effective_samples),
            tokens=self.tokens + other.tokens,
            greedy=None if self.greedy is None or other.greedy is None else self.greedy and other.greedy,
            near_ties=self.near_ties + other.near_ties,
            warnings=tuple(dict.fromkeys(self.warnings + other.warnings))[:1],
        )


def log_mean_exp(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Value and jackknife standard error, both (B,) float64 nats, of log-weights (B, K). With K = 1 the error is infinite."""
    weights = log_weights.double()
    count = weights.shape[-1]
    value = weights.logsumexp(-1) - math.log(count)
    if count == 1:
        return value, torch.full_like(value, math.inf)
    # Leave-one-out sums, relative to the largest weight; the largest itself is summed over the others to avoid cancellation.
    scaled = (weights - weights.amax(-1, keepdim=True)).exp()  # (B, K)
    ordered, _ = scaled.sort(dim=-1, descending=True)
    total = ordered.sum(-1, keepdim=True)
    without = total - ordered
    without[:, 0] = ordered[:, 1:].sum(-1)
    left = without.clamp(min=1e-300).log()  # (B, K); the common constants drop out of the spread
    spread = (left - left.mean(-1, keepdim=True)).square().sum(-1)
    return value, torch.sqrt(spread * (count - 1) / count)


def mean_of_logs(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and its standard error, (B,) float64 nats, of per-sample bounds (B, K)."""
    count = samples.shape[-1]
    value = samples.double().mean(-1)
    if count == 1:
        return value, torch.full_like(value, math.inf)
    return value, samples.double().std(-1) / math.sqrt(count)


def effective_samples(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of log-weights (B, K): (B,)."""
    weights = log_weights.double()
    return (2 * weights.logsumexp(-1) - (2 * weights).logsumexp(-1)).exp()


def make_scores(
    log_weights: Tensor,
    *,
    method: str,
    exact: bool,
    tokens: Sequence[int],
    greedy: Sequence[bool] | None,
    near_ties: Sequence[int],
    proposal: str = "",
) -> list[Score]:
    """One Score per row of (B, K) log-weights (per-sample bounds for `elbo`)."""
    count = log_weights.shape[1]
    if exact:
        values, errors, effective = log_weights[:, 0], torch.zeros(len(tokens)), torch.ones(len(tokens))
    elif method == "elbo":
        values, errors = mean_of_logs(log_weights)
        effective = torch.full_like(values, float(count))
    else:
        values, errors = log_mean_exp(log_weights)
        effective = effective_samples(log_weights)
    return [
        Score(
            value=float(values[row]),
            standard_error=float(errors[row]),
            effective_samples=float(effective[row]),
            samples=0 if exact else count,
            tokens=tokens[row],
            method=method,
            greedy=None if greedy is None else bool(greedy[row]),
            near_ties=int(near_ties[row]),
            proposal="" if exact else proposal,
            warnings=() if exact else _warnings(float(effective[row]), count),
        )
        for row in range(len(tokens))
    ]


def _warnings(effective: float, count: int) -> tuple[str, ...]:
    """What a reader of the score should know."""
    if count == 1:
        return ("one sample has no standard error: use samples >= 2",)
    if effective < max(count / 10, _ALONE):
        return (f"effective sample size {effective:.1f} of {count}: the score leans on few samples, more would change it",)
    return ()
