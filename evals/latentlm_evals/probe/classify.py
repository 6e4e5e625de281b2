"""A linear classifier, and what it says of features that it has not been fitted on.

Logistic regression with a ridge on standardised features, by Newton's method; the ridge is chosen on a fourth of the texts at
hand. `out_of_fold` fits it on four fifths of the texts and asks it about the rest, five times.

    information    mean of log2 p(label | features) - log2 p(label), both from the other four fifths: in expectation a *lower*
                   bound on the mutual information of features and label (Barber and Agakov 2003), short of it by what a linear
                   classifier cannot see and by what so few texts cannot teach. (The frequency of the label is an estimate too,
                   which adds less than 1/N bits.) Where there is nothing to see it lies at 0 or just below it
    accuracy       share of labels whose logit has the right sign

Legend: N texts, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentlm_evals.probe.intervals import Interval, bootstrapped, share

Features = NDArray[np.float64]
Labels = NDArray[np.bool_]
FOLDS = 5
RIDGES = (0.003, 0.03, 0.3, 3.0, 30.0)
"""Per text; the largest leaves next to nothing but the frequency of the labels."""
_STEPS = 25


@dataclass(frozen=True)
class Linear:
    """A fitted classifier."""

    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    """(F + 1,), the constant last."""

    def logits(self, features: Features) -> NDArray[np.float64]:
        """(N,): log odds of the label."""
        return _with_one((features - self.centre) / self.scale) @ self.weights


@dataclass(frozen=True)
class Answers:
    """What classifiers said of texts that they were not fitted on."""

    labels: Labels
    logits: NDArray[np.float64]
    frequencies: NDArray[np.float64]
    """(N,): of the label among the texts that each was fitted on."""

    @property
    def information(self) -> Interval:
        """Bits; see the module. Bootstrapped over texts."""
        known = _nats(np.log(self.frequencies / (1 - self.frequencies)), self.labels)
        return bootstrapped((known - _nats(self.logits, self.labels)) / math.log(2))

    @property
    def accuracy(self) -> Interval:
        """Over texts."""
        return share((self.logits > 0) == self.labels)


def out_of_fold(features: Features, labels: Labels, *, seed: int = 0) -> Answers:
    """Answers for every text; both labels are among the texts of every fold's complement."""
    fold = np.empty(len(labels), dtype=int)
    rng = np.random.default_rng(seed)
    for kind in (True, False):  # either label as often in each fold as can be
        own = rng.permutation(np.flatnonzero(labels == kind))
        fold[own] = np.arange(len(own)) % FOLDS
    logits, frequencies = np.empty(len(labels)), np.empty(len(labels))
    for number in range(FOLDS):
        here = fold == number
        logits[here] = fitted(features[~here], labels[~here]).logits(features[here])
        frequencies[here] = labels[~here].mean()
    return Answers(labels, logits, frequencies)


def shuffled(features: Features, labels: Labels, *, seed: int = 0) -> Answers:
    """A control: the same with labels that have nothing to do with the texts."""
    return out_of_fold(features, np.random.default_rng(seed + 1).permutation(labels), seed=seed)


def fitted(features: Features, labels: Labels) -> Linear:
    """A classifier, its ridge chosen on every fourth text."""
    spread = features.std(0)
    centre, scale = features.mean(0), np.where(spread > 1e-9, spread, 1.0)
    known = _with_one((features - centre) / scale)
    kept = np.arange(len(labels)) % 4 != 3
    found = [_newton(known[kept], labels[kept], ridge) for ridge in RIDGES]
    losses = [float(_nats(known[~kept] @ weights, labels[~kept]).mean()) for weights in found]
    return Linear(centre, scale, _newton(known, labels, RIDGES[int(np.argmin(losses))]))


def _newton(known: Features, labels: Labels, ridge: float) -> NDArray[np.float64]:
    """The minimum of the nats and half of the ridge times N times the squared weights, the constant's apart; halved steps where
    a whole one leads up."""
    count, width = known.shape
    penalty = np.full(width, ridge * count)
    penalty[-1] = 1e-6
    weights = np.zeros(width)

    def loss(at: NDArray[np.float64]) -> float:
        return float(_nats(known @ at, labels).sum() + 0.5 * (penalty * at**2).sum())

    here = loss(weights)
    for _ in range(_STEPS):
        chance = 0.5 * (1 + np.tanh(0.5 * (known @ weights)))
        slope = known.T @ (chance - labels) + penalty * weights
        curve = (known * (chance * (1 - chance))[:, None]).T @ known + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        size = 1.0
        while (there := loss(weights - size * step)) > here and size > 1e-4:
            size /= 2
        if here - there < 1e-9 * count:
            break
        weights, here = weights - size * step, there
    return weights


def _with_one(features: Features) -> Features:
    return np.concatenate((features, np.ones((len(features), 1))), axis=1)


def _nats(logits: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """-log p of each label."""
    found: NDArray[np.float64] = np.logaddexp(0.0, np.where(labels, -logits, logits))
    return found
