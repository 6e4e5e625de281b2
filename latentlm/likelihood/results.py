"""From K log-weights to a score: log-mean-exp, its standard error, the effective sample size, and whether it has converged.

    value               log (1/K) sum_k w_k
    standard error      jackknife: s^2 = (K-1)/K sum_k (L_k - mean L)^2, L_k the value without sample k; of a defensive mixture,
                        whose paths of either kind are a fixed number, such a sum for each kind
    quarter, sixteenth  the same from K/4 and K/16 samples: the mean of four such values, and of sixteen
    bias                what may be left, judged by what the last fourfolds of samples gained (`left`)
    effective samples   (sum w)^2 / sum w^2, between 1 and K
    settled             whether the weights can tell what is left at all: at least four effective samples, and no heavy tail
                        (`tails`); of a particle filter, islands that agree
    uncertainty         t standard errors + bias, t Student's quantile of 95% with as many degrees of freedom as there are
                        effective samples, less one: an error that rests on few weights is itself not known well

The delta method's error, sd(w) / (mean(w) sqrt(K)), can never exceed 1 nat however badly one weight dominates; the jackknife's
can, so it is the one reported. It says how far the value moves from draw to draw. On texts so long that few samples carry the
weight, the value is moreover below the log-likelihood by an amount that no spread of the weights reveals: E log-mean-exp
rises with K (Burda et al. 2016, theorem 1). Where the bias falls like K^-a, each fourfold of samples gains 4^-a of what the one
before gained, and what is left at K is (value - quarter) / (4^a - 1): a third of the last gain for the well-behaved weights of
a = 1, all of it for a = 1/2, and many times it where the gains hardly shrink.

Neither the error nor what is left is known where one draw has nearly all the weight: then all three values are that draw's. A
score that is not settled is a lower bound that says nothing of how far below the truth it lies: its uncertainty is infinite.

A score has *converged* to a tolerance where its uncertainty is at most that; an `elbo` never has, since what it lies below the
log-likelihood by shows in no number of samples. The tolerance is in nats for a continuation, in bits per byte for a text.

Legend: B requests, K samples. All numbers are nats, float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from latentlm.likelihood.quantiles import pooled_freedom, t_quantile
from latentlm.likelihood.tails import HEAVY, tail_shape

Method = Literal["auto", "operational", "iwae", "smc", "prior", "elbo", "joint"]

METHODS: dict[str, str] = {
    "auto": "exact where latents can be few things; else operational (iwae of a text), smc where weights settle nothing",
    "operational": "density of what generate samples: latents from the encoder on the context alone, then from the prior",
    "iwae": "importance-weighted bound on the log-likelihood, posterior as proposal; tight as samples grow",
    "smc": "particle filters: of a continuation as operational, of a text as iwae, unbiased for the likelihood",
    "prior": "mean over samples from the prior: unbiased for the likelihood, useless for long texts",
    "elbo": "lower bound on the log-likelihood; does not converge to it",
    "joint": "log-likelihood of context and continuation together, by iwae: only for ranking one question's options",
}
"""Every method with one line on what its number is."""

EXACT = "exact"
"""The method that a score is by where `auto` could go through all that the latents can be."""
SIXTEENTHS_FROM = 32
"""Samples of which a sixteenth is worth a value: two."""
MOST_GAINS = 4.0
"""Last gains that are taken to be left at most: a bias that falls by a fifth with each fourfold of samples."""
_ALONE = 1.1
"""Fewer effective samples than this: one sample has all the weight, however small K is."""
LEAST_EFFECTIVE = 4.0
"""Effective samples under which importance weights do not say what is left."""
ISLANDS = 8
"""Filters that particles are shared out to: enough to know their spread, and no more than that takes, since on a long text it
is their size that tells."""
SPREAD = 2.5
"""Nats, the standard deviation of the logs of a particle filter's islands above which they do not say what is left."""
SETTLED = 0.95
"""Share of the targets of several windows, and of the bytes of several texts, that has to be settled: of a light tail the fit
says that it is heavy now and then."""


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one request. The truth lies within `interval` in about 95 cases of 100."""

    value: float
    """Nats, over all tokens of the request."""
    standard_error: float
    """Nats; 0 for an exact score, infinite where a single sample cannot tell."""
    effective_samples: float
    """Between 1 and `samples`; the smallest of a text's windows. For `elbo`, which weights nothing, all of them."""
    samples: int
    """K, of a text the most that one of its windows took; 0 where the score is exact."""
    tokens: int
    """Targets that were scored."""
    method: str
    quarter: float = math.nan
    """The value at K/4 (nats); NaN under four samples, and for `elbo`, which more samples bring no nearer to the truth."""
    sixteenth: float = math.nan
    """The value at K/16 (nats); NaN under 32 samples, and for `elbo`. Of a particle filter, which does without, that at K/4."""
    islands: tuple[float, float] = (0.0, 0.0)
    """The value and the quarter of the windows that are by a particle filter."""
    tolerance: float = math.nan
    """Nats that the score is to be good to."""
    freedom: float = math.inf
    """Degrees of freedom of the standard error: effective samples less one, pooled over windows; infinite for an exact
    score."""
    settled: float = 1.0
    """Share of the targets in windows whose weights say what is left; of a single window, 0 or 1."""
    greedy: bool | None = None
    """Every target is the argmax of the predictive mixture given those before it; None if not asked for."""
    near_ties: int = 0
    """Bits whose uniform number fell so near its threshold that floating-point rounding can flip them."""
    warnings: tuple[str, ...] = ()
    proposal: str = ""
    """What latents were drawn from: "posterior" (and weighted), or "target" (a prior, an encoder of the context alone), where
    there is no encoder, its posterior is a point mass, or no site predicts a target that it has seen; by latent where they
    differ. Empty without latents. Of a text in windows, the first one's."""

    @property
    def bias(self) -> float:
        """Nats by which the value may lie below the truth, beside its standard error; NaN where no fewer samples are there to
        compare with: under four, and for `elbo`."""
        return left((self,))

    @property
    def uncertainty(self) -> float:
        """Half of the interval of 95% that the standard error makes, and the bias, nats; infinite where that is not known."""
        return self._half + self.bias if self.known and not math.isnan(self.bias) else math.inf

    @property
    def known(self) -> bool:
        """Enough of it is settled for the others to be false alarms (`SETTLED`)."""
        return self.settled >= SETTLED

    @property
    def interval(self) -> tuple[float, float]:
        """From value less half of the error's interval to value plus uncertainty, nats."""
        return self.value - self._half, self.value + self.uncertainty

    @property
    def _half(self) -> float:
        return t_quantile(self.freedom) * self.standard_error if self.standard_error else 0.0

    @property
    def converged(self) -> bool:
        """The uncertainty is within the tolerance."""
        return self.uncertainty <= self.tolerance

    def plus(self, other: Score) -> Score:
        """The next window of the same text: nats add up, and with them the bias; errors in quadrature."""
        return replace(
            self,
            value=self.value + other.value,
            standard_error=math.hypot(self.standard_error, other.standard_error),
            effective_samples=min(self.effective_samples, other.effective_samples),
            samples=max(self.samples, other.samples),
            tokens=self.tokens + other.tokens,
            freedom=pooled_freedom((self.standard_error, other.standard_error), (self.freedom, other.freedom)),
            quarter=self.quarter + other.quarter,
            sixteenth=self.sixteenth + other.sixteenth,
            tolerance=self.tolerance + other.tolerance,
            islands=(self.islands[0] + other.islands[0], self.islands[1] + other.islands[1]),
            settled=(self.settled * self.tokens + other.settled * other.tokens) / (self.tokens + other.tokens),
            method=" and ".join(sorted({*self.method.split(" and "), *other.method.split(" and ")})),
            greedy=None if self.greedy is None or other.greedy is None else self.greedy and other.greedy,
            near_ties=self.near_ties + other.near_ties,
            warnings=tuple(dict.fromkeys(self.warnings + other.warnings))[:1],
        )


def left(scores: Sequence[Score]) -> float:
    """Nats by which texts together may lie below the truth. Their values are added before they are compared with those of fewer
    samples: noise cancels, and what is left is the bias. Of importance weights it is what `remaining` says; of particle filters
    as much as the last fourfold of islands gained, and at least ISLANDS/2 times the squared errors: what one island alone would
    lack where their estimates are log-normal, as those of long texts are (Berard, Del Moral & Doucet 2014)."""
    filtered, quarter = (sum(score.islands[part] for score in scores) for part in (0, 1))
    value, few, fewer = (sum(values) for values in zip(*((s.value, s.quarter, s.sixteenth) for s in scores), strict=True))
    squares = sum(score.standard_error**2 for score in scores if score.islands != (0.0, 0.0))
    gained = math.nan if math.isnan(quarter) else max(0.0, filtered - quarter, ISLANDS / 2 * squares)
    return gained + remaining(value - filtered, few - quarter, fewer - quarter)


def remaining(value: float, quarter: float, sixteenth: float) -> float:
    """Nats by which a value at K may lie below the truth, given those at K/4 and K/16: as many times what the last fourfold of
    samples gained as a bias leaves that goes on falling as it fell, at least once and at most `MOST_GAINS` times. A last gain
    counts for half of the one before where it is less: it is a single draw's, may come out small by luck, and gains that shrink
    faster than by half are not counted on. Where K/16 is not known (NaN), the most. NaN where K/4 is not."""
    if math.isnan(quarter):
        return math.nan
    before = quarter - sixteenth
    gained = max(0.0, value - quarter, 0.0 if math.isnan(before) else before / 2)
    if not gained < before * MOST_GAINS / (1 + MOST_GAINS):
        return MOST_GAINS * gained
    return gained * max(1.0, gained / (before - gained))


def log_mean_exp(log_weights: Tensor, strata: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Value and jackknife standard error, both (B,) float64 nats, of log-weights (B, K). `strata` (K,) bool: draws of two
    kinds, a fixed number of each; the error is then that within the kinds, each of which needs two draws. With K = 1 it is
    infinite."""
    weights = log_weights.double()
    count = weights.shape[-1]
    value = weights.logsumexp(-1) - math.log(count)
    if count == 1:
        return value, torch.full_like(value, math.inf)
    whole = torch.ones(count, dtype=torch.bool)
    kinds = [whole] if strata is None else [kind for kind in (strata, ~strata) if bool(kind.any())]
    if any(int(kind.sum()) == 1 for kind in kinds):  # of a single draw nothing is known: as if it were one of the others
        kinds = [whole]
    scaled = (weights - weights.amax(-1, keepdim=True)).exp()  # (B, K)
    variance = torch.zeros_like(value)
    for kind in kinds:
        own, size = scaled[:, kind.to(scaled.device)], int(kind.sum())
        others = scaled.sum(-1) - own.sum(-1) if len(kinds) > 1 else torch.zeros_like(value)
        # Leave-one-out sums; the largest itself is summed over the others to avoid cancellation.
        ordered, _ = own.sort(dim=-1, descending=True)
        without = ordered.sum(-1, keepdim=True) - ordered
        without[:, 0] = ordered[:, 1:].sum(-1)
        total = others[:, None] + without * (size / (size - 1))
        left = total.clamp(min=1e-300).log()  # (B, size); the common constants drop out of the spread
        variance = variance + (left - left.mean(-1, keepdim=True)).square().sum(-1) * (size - 1) / size
    return value, variance.sqrt()


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


def settled(log_weights: Tensor) -> list[bool]:
    """Whether importance weights, logs (B, K), say what is left."""
    enough = (effective_samples(log_weights) > LEAST_EFFECTIVE - 1e-3).tolist()  # of four even ones, all
    return [many and not shape > HEAVY for many, shape in zip(enough, tail_shape(log_weights).tolist(), strict=True)]


def islands_agree(log_weights: Tensor) -> list[bool]:
    """Whether a particle filter's islands, log-estimates (B, M), do."""
    if log_weights.shape[1] < 2:
        return [False] * len(log_weights)
    return (log_weights.double().std(-1) <= SPREAD).tolist()  # NaN, where some are -inf, is no


def exact_score(nats: float, *, tokens: int, method: str, tolerance: float, greedy: bool | None) -> Score:
    """Of a decoder without latents, or of one whose latents were all gone through."""
    return Score(nats, 0.0, 1.0, 0, tokens, method, quarter=nats, sixteenth=nats, tolerance=tolerance, greedy=greedy)


def estimate(
    log_weights: Tensor, parts: Sequence[Sequence[Tensor]], strata: Tensor | None, *, method: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Value, standard error, effective samples, and the values at K/4 and K/16, (B,) each, of log-weights (B, K) and of their
    quarters and sixteenths (`parts`), or of per-sample bounds for `elbo`."""
    if method == "elbo":
        value, error = mean_of_logs(log_weights)
        unknown = torch.full_like(value, math.nan)
        return value, error, torch.full_like(value, log_weights.shape[1]), unknown, unknown
    value, error = log_mean_exp(log_weights, strata)
    unknown = torch.full_like(value, math.nan)
    quarter, sixteenth = (torch.stack([log_mean_exp(one)[0] for one in few] or [unknown]).mean(0) for few in parts)
    return value, error, effective_samples(log_weights), quarter, sixteenth


def runs(count: int, many: int) -> list[tuple[int, int]]:
    """So many runs of samples, from .. to, as even as can be; none where there are fewer samples."""
    return list(pairwise(part * count // many for part in range(many + 1))) if count >= many else []


def cautions(effective: float, count: int, *, known: bool, what: str) -> tuple[str, ...]:
    """What a reader of a score should know; `what` there are so many of, samples or islands."""
    if count == 1:
        return (f"one {what[:-1]} has no standard error: use more samples",)
    if effective < max(count / 10, _ALONE):
        return (f"effective {what} {effective:.1f} of {count}: the score leans on few of them, more would change it",)
    if not known:
        return (f"the weights of the {what} differ so much that how far the score is below the truth is not known",)
    return ()
