"""Tables from scores: bits per byte with errors clustered by document, and paired differences between models.

Bits per byte = - nats of all targets, end-of-text included / (raw bytes x ln 2), a ratio of sums over documents d. Its sampling
error treats documents as the independent units (linearised ratio estimator, Cochran 1977, section 2.11):

    r = sum a_d / sum b_d,    se^2 = n / (n-1) sum (a_d - r b_d)^2 / (sum b_d)^2

The estimates' own errors are independent between texts and add in quadrature; what they are too low by adds up.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from latentlm.errors import UserError
from latentlm.likelihood.quantiles import pooled_freedom, t_quantile
from latentlm.likelihood.results import SETTLED, Score, left


@dataclass(frozen=True)
class Estimate:
    """A number with its two errors, all in bits per byte."""

    value: float
    standard_error: float
    """Sampling of documents; NaN for a single document, of which nothing can be said."""
    estimator_error: float
    """Of the likelihood estimates themselves (0 where they are exact)."""
    documents: int
    estimator_freedom: float = math.inf
    """Degrees of freedom of the estimator's error, pooled over the texts."""
    settled: float = 1.0
    """Share of the bytes in texts whose estimates say what they are too low by (`Score.settled`); of a difference, the smaller
    of both models'."""
    bias: float = 0.0
    """What the estimates may be off by beside their errors (`Score.bias`), added up; of a difference, the larger of both
    models'."""

    @property
    def uncertainty(self) -> float:
        """Of the estimates, not of the choice of documents: half of the interval of 95% that their error makes, and the bias.
        NaN where that of some text is not known: under four samples, and for `elbo`; infinite where too few are settled."""
        if self.settled < SETTLED:
            return math.inf
        half = t_quantile(self.estimator_freedom) * self.estimator_error if self.estimator_error else 0.0
        return half + self.bias

    @property
    def good_to(self) -> str:
        """The uncertainty, in words."""
        return in_words(self.uncertainty)

    def converged(self, tolerance: float) -> bool:
        """Whether the estimates are good to so many bits per byte."""
        return self.uncertainty <= tolerance


def in_words(uncertainty: float) -> str:
    """What an estimate is good to, bits per byte."""
    return f"{uncertainty:.4f}" if math.isfinite(uncertainty) else "unknown"


def bits_per_byte(scores: Sequence[Score], sizes: Sequence[int], *, documents: Sequence[Hashable] | None = None) -> Estimate:
    """Bits per byte of texts of `sizes` raw bytes. Texts with one name in `documents` are one unit; default: each its own."""
    bits = [-score.value / math.log(2) for score in scores]
    errors = [score.standard_error / math.log(2) for score in scores]
    freedom = pooled_freedom(errors, [score.freedom for score in scores])
    return replace(
        _ratio(bits, errors, sizes, documents),
        bias=_bias(scores, sizes),
        estimator_freedom=freedom,
        settled=_settled(scores, sizes),
    )


def paired_difference(
    first: Sequence[Score],
    second: Sequence[Score],
    sizes: Sequence[int],
    *,
    documents: Sequence[Hashable] | None = None,
) -> Estimate:
    """Bits per byte of `first` minus those of `second` on the same texts; negative: the first model is better. Pairing takes
    out what the texts' difficulty adds to each model's own error."""
    if len(first) != len(second):
        raise UserError(f"{len(first)} scores against {len(second)}: a paired difference needs the same texts.")
    bits = [(other.value - one.value) / math.log(2) for one, other in zip(first, second, strict=True)]
    errors = [
        math.hypot(one.standard_error, other.standard_error) / math.log(2) for one, other in zip(first, second, strict=True)
    ]
    biases = (_bias(first, sizes), _bias(second, sizes))
    bias = math.nan if any(map(math.isnan, biases)) else max(biases)  # of max, what comes first would decide
    freedoms = [
        pooled_freedom((one.standard_error, other.standard_error), (one.freedom, other.freedom))
        for one, other in zip(first, second, strict=True)
    ]
    return replace(
        _ratio(bits, errors, sizes, documents),
        bias=bias,
        estimator_freedom=pooled_freedom(errors, freedoms),
        settled=min(_settled(first, sizes), _settled(second, sizes)),
    )


def _settled(scores: Sequence[Score], sizes: Sequence[int]) -> float:
    """Share of the bytes that are."""
    return sum(score.settled * size for score, size in zip(scores, sizes, strict=True)) / sum(sizes)


def _bias(scores: Sequence[Score], sizes: Sequence[int]) -> float:
    """Bits per byte that the estimates together may be too high by."""
    return left(scores) / sum(sizes) / math.log(2)


def _ratio(
    amounts: Sequence[float], errors: Sequence[float], sizes: Sequence[int], documents: Sequence[Hashable] | None
) -> Estimate:
    """Ratio of sums with its clustered standard error."""
    names = list(range(len(amounts))) if documents is None else list(documents)
    if not len(amounts) == len(sizes) == len(names):
        raise UserError(f"{len(amounts)} scores, {len(sizes)} sizes and {len(names)} documents: give one of each per text.")
    if not amounts or sum(sizes) <= 0:
        raise UserError("There are no bytes to divide by: the texts are empty.")
    clusters: dict[Hashable, tuple[float, float]] = {}
    for name, amount, size in zip(names, amounts, sizes, strict=True):
        bits, raw = clusters.get(name, (0.0, 0.0))
        clusters[name] = (bits + amount, raw + size)
    total = sum(sizes)
    ratio = sum(amounts) / total
    count = len(clusters)
    residual = sum((bits - ratio * raw) ** 2 for bits, raw in clusters.values())
    error = math.sqrt(count / (count - 1) * residual) / total if count > 1 else math.nan
    return Estimate(ratio, error, math.sqrt(sum(e**2 for e in errors)) / total, count)
