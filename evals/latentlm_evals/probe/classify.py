"""A linear classifier, and what it says of features that it has not been fitted on.

scikit-learn's logistic regression with a ridge on standardised features, the ridge chosen by cross-validation of the texts at
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
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from latentlm_evals.intervals import Interval, bootstrapped, share

Features = NDArray[np.float64]
Labels = NDArray[np.bool_]
FOLDS = 5
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 0.3, 1.0)
"""Inverse ridges; the smallest leaves next to nothing but the frequency of the labels."""


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
    """Answers for every text; either label is as often in each fold as can be."""
    logits, frequencies = np.empty(len(labels)), np.empty(len(labels))
    for there, here in StratifiedKFold(FOLDS, shuffle=True, random_state=seed % 2**32).split(features, labels):
        logits[here] = fitted(features[there], labels[there]).decision_function(features[here])
        frequencies[here] = labels[there].mean()
    return Answers(labels, logits, frequencies)


def shuffled(features: Features, labels: Labels, *, seed: int = 0) -> Answers:
    """A control: the same with labels that have nothing to do with the texts."""
    return out_of_fold(features, np.random.default_rng(seed + 1).permutation(labels), seed=seed)


def fitted(features: Features, labels: Labels) -> GridSearchCV:
    """A classifier; its `decision_function(features)` is (N,), log odds of the label."""
    steps = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return GridSearchCV(steps, {"logisticregression__C": STRENGTHS}, scoring="neg_log_loss", cv=4).fit(features, labels)


def _nats(logits: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """-log p of each label."""
    found: NDArray[np.float64] = np.logaddexp(0.0, np.where(labels, -logits, logits))
    return found
