"""Differences, intervals and McNemar's test against known values, and how often the intervals cover the truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from lm_eval.api.metrics import bits_per_byte, mean, perplexity
from scipy import stats

from latentlm_evals.paired import Stratum, crossed_difference, mcnemar, pseudo_values, t_quantile

EXPERIMENTS = 500


@pytest.mark.parametrize("freedom", [1, 1.7, 2, 5, 29.3, 1e3, 1e7])
def test_quantiles_are_those_of_students_t(freedom: float) -> None:
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-7)


def test_one_run_each_gives_the_interval_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 23))
    found = crossed_difference([Stratum(first[None], second[None])])
    known = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert found.runs_error == 0


def test_where_only_runs_differ_the_interval_is_that_of_welchs_test() -> None:
    means = [np.array([0.1, 0.4, 0.2]), np.array([0.9, 0.3, 0.5, 0.6])]
    items = np.linspace(-1, 1, 50)  # every run answers every item alike, but for its own mean
    first, second = (own[:, None] + items for own in means)
    found = crossed_difference([Stratum(first, second)])
    known = stats.ttest_ind(means[1], means[0], equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.items_error == pytest.approx(0, abs=1e-12)


def test_zeros_and_ones_count_an_item_more_that_each_alone_gets_right() -> None:
    first, second = np.array([[1.0] * 30 + [0.0] * 10]), np.array([[1.0] * 25 + [0.0] * 10 + [1.0] * 5])
    plain = (second - first).var(ddof=1) / 40
    found = crossed_difference([Stratum(first, second)])
    assert found.items_error == pytest.approx(math.sqrt(plain + 2 / 40**2))
    agreeing = crossed_difference([Stratum(first, first)])
    assert agreeing.low < 0 < agreeing.high


def test_proportions_differ_by_one_at_most() -> None:
    found = crossed_difference([Stratum(np.zeros((1, 2)), np.ones((1, 2)))])
    assert (found.low, found.value, found.high) == (pytest.approx(-1.0), 1.0, 1.0), "of two items little is known"
    group = [Stratum(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), weight) for weight in (0.25, 0.75)]
    found = crossed_difference(group)
    assert (found.low, found.high) == (-1.0, 1.0)
    wide = crossed_difference([Stratum(np.array([[0.0, 1.5]]), np.array([[1.0, 0.0]]))])
    assert wide.high > 1.0, "other scores have no such bound"


def test_a_group_weighs_its_tasks() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(2, 1, 10)), rng.normal(size=(2, 1, 40))
    apart = [crossed_difference([Stratum(*scores)]) for scores in (one, other)]
    found = crossed_difference([Stratum(*one, 0.2), Stratum(*other, 0.8)])
    assert found.value == pytest.approx(0.2 * apart[0].value + 0.8 * apart[1].value)
    assert found.items_error == pytest.approx(math.hypot(0.2 * apart[0].items_error, 0.8 * apart[1].items_error))


def test_one_item_has_no_interval() -> None:
    found = crossed_difference([Stratum(np.array([[0.0]]), np.array([[1.0]]))])
    assert found.value == 1.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(("one", "other"), [(5, 15), (0, 6), (7, 7), (1, 0), (3000, 3117)])
def test_mcnemar_is_the_exact_binomial_test(one: int, other: int) -> None:
    assert mcnemar(one, other) == pytest.approx(stats.binomtest(one, one + other).pvalue)
    assert mcnemar(one, other) == mcnemar(other, one)


def test_mcnemar_without_differing_items_finds_nothing() -> None:
    assert mcnemar(0, 0) == 1.0


def test_pseudo_values_of_a_mean_are_its_items() -> None:
    values = [0.5, 1.5, -2.0, 7.0]
    assert pseudo_values(values, mean) == pytest.approx(values)


def test_pseudo_values_of_a_perplexity_have_its_value_and_its_error() -> None:
    nats = np.random.default_rng(3).normal(-2.0, 0.3, size=1000)  # more items than blocks
    found = pseudo_values(list(nats), perplexity)
    assert len(found) < 300
    assert found.mean() == pytest.approx(perplexity(nats))
    by_delta = perplexity(nats) * nats.std(ddof=1) / math.sqrt(1000)
    assert found.std(ddof=1) / math.sqrt(len(found)) == pytest.approx(by_delta, rel=0.15)


def proportions(items: int, before: float, after: float) -> Callable[[np.random.Generator], tuple[list[Stratum], float]]:
    """Right or wrong, with items that are hard for both models."""

    def experiment(rng: np.random.Generator) -> tuple[list[Stratum], float]:
        hard = rng.normal(size=items)
        own = [math.sqrt(0.6) * hard + math.sqrt(0.4) * rng.normal(size=items) for _ in range(2)]
        answers = [(own[n] < stats.norm.ppf(p)).astype(float)[None] for n, p in enumerate((before, after))]
        return [Stratum(answers[0], answers[1])], after - before

    return experiment


def seeds(runs: tuple[int, int], spread: float, tasks: int = 1) -> Callable[[np.random.Generator], tuple[list[Stratum], float]]:
    """Scores with effects of item, run, and chance; `spread` is that of runs, which all tasks share."""

    def experiment(rng: np.random.Generator) -> tuple[list[Stratum], float]:
        of_runs = [spread * rng.normal(size=(count, 1)) for count in runs]
        strata = []
        for _ in range(tasks):
            items = rng.normal(size=(1, 60))
            first, second = (
                run + items + 0.4 * rng.normal(size=(1, 60)) + rng.normal(size=(len(run), 60)) for run in of_runs
            )
            strata.append(Stratum(first, second + 0.3, 1 / tasks))
        return strata, 0.3

    return experiment


def accuracies_of_seeds(items: int, runs: int) -> Callable[[np.random.Generator], tuple[list[Stratum], float]]:
    """Right or wrong, in several runs of which some are better at all items."""

    def experiment(rng: np.random.Generator) -> tuple[list[Stratum], float]:
        hard = rng.normal(size=(1, items))
        answers = []
        for threshold in (-0.5, -0.2):
            own = math.sqrt(0.6) * hard + math.sqrt(0.4) * rng.normal(size=(runs, items)) + 0.2 * rng.normal(size=(runs, 1))
            answers.append((own < threshold).astype(float))
        spread = math.sqrt(1 + 0.2**2)
        return [Stratum(*answers)], float(stats.norm.cdf(-0.2 / spread) - stats.norm.cdf(-0.5 / spread))

    return experiment


def rates(items: int) -> Callable[[np.random.Generator], tuple[list[Stratum], float]]:
    """Bits per byte of documents of unequal length."""

    def experiment(rng: np.random.Generator) -> tuple[list[Stratum], float]:
        sizes = rng.integers(100, 1000, items)
        nats = rng.normal(1.4, 0.4, items)
        first, second = (
            pseudo_values([(-rate * size, size) for rate, size in zip(rates, sizes, strict=True)], bits_per_byte)[None]
            for rates in (nats + rng.normal(0, 0.05, items), nats + 0.03 + rng.normal(0, 0.05, items))
        )
        return [Stratum(first, second)], 0.03 / math.log(2)

    return experiment


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(proportions(60, 0.25, 0.3), id="60 items"),
        pytest.param(proportions(400, 0.5, 0.6), id="400 items"),
        pytest.param(seeds((1, 1), 0.0), id="one run each"),
        pytest.param(seeds((3, 3), 0.3), id="three seeds that differ"),
        pytest.param(seeds((5, 3), 0.15), id="five seeds and three"),
        pytest.param(accuracies_of_seeds(100, 3), id="accuracies of three seeds"),
        pytest.param(rates(30), id="bits per byte"),
        pytest.param(seeds((3, 3), 0.2, tasks=3), id="three seeds over a group"),
    ],
)
def test_intervals_cover_the_truth_as_often_as_they_say(experiment: Callable[..., tuple[list[Stratum], float]]) -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(EXPERIMENTS):
        strata, truth = experiment(rng)
        found = crossed_difference(strata)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / EXPERIMENTS <= 0.98


def test_an_interval_without_the_seeds_would_miss_the_truth() -> None:
    """What the term of the runs is for: from one of three seeds each, the same truth is covered far less often."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(EXPERIMENTS):
        ((one,), truth) = seeds((3, 3), 0.3)(rng)
        found = crossed_difference([Stratum(one.first[:1], one.second[:1])])
        covered += found.low <= truth <= found.high
    assert covered / EXPERIMENTS < 0.8
