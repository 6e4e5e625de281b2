"""The estimators against exact answers, on planted decoders of every granularity and kind of latent."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from latentlm.composed import ComposedDecoder, build
from latentlm.likelihood import METHODS, score_continuations
from latentlm.testing import (
    check_coverage,
    check_exactness,
    check_keyed_randomness,
    check_no_latents_no_noise,
    check_normalisation,
    check_sampler_agreement,
    check_shrinking_error,
    leak_sum,
    probability_sum,
)
from latentlm.testing.exact import exact_log_likelihood
from likelihood_parts import FairBits, PointBits, StandardNormal, StickyBits, tiny
from samples import small_config

KINDS = {
    "bits per token": {"vocabulary": 2, "events": 1},
    "bits per chunk": {"granularity": "chunk:2"},
    "bits per document": {"granularity": "document"},
    "normal per document": {"granularity": "document", "prior": StandardNormal, "events": 1},
    "two normals per document": {"granularity": "document", "prior": StandardNormal},
    "normal per chunk": {"granularity": "chunk:3", "prior": StandardNormal, "events": 1},
    "autoregressive bits": {"prior": StickyBits, "vocabulary": 2, "events": 1},
    "autoregressive chunks": {"prior": StickyBits, "granularity": "chunk:2"},
    "no encoder": {"encoder": False, "events": 1},
}
REQUESTS = [([0, 1], [1, 1, 0]), ([1, 1, 0], [1, 0, 0]), ([1], [1, 0, 0]), ([0, 1, 1], [0]), ([1, 0, 1, 1], [0, 1])]


@cache
def planted(kind: str) -> ComposedDecoder:
    return tiny(**KINDS[kind])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "two normals per document"])
@pytest.mark.parametrize("method", METHODS)
def test_scores_equal_the_sum_over_all_latents(kind: str, method: str) -> None:
    check_exactness(planted(kind), REQUESTS, method=method, seed=1)


def test_scores_equal_the_integral_over_two_dimensions() -> None:
    for method in ("operational", "iwae"):
        check_exactness(planted("two normals per document"), REQUESTS[:1], method=method, samples=256)


@pytest.mark.parametrize("kind", ["bits per token", "bits per chunk", "autoregressive bits", "normal per document"])
def test_last_latent_from_the_prior_is_scored_as_such(kind: str) -> None:
    model = planted(kind)
    check_exactness(model, REQUESTS, last_latent="prior", seed=1)
    context, continuation = REQUESTS[0]
    posterior, prior = (
        exact_log_likelihood(model, context, continuation, target="generation", last_latent=last)
        for last in ("posterior", "prior")
    )
    assert kind == "autoregressive bits" or abs(posterior - prior) > 0.05, "the two agree, so that the test shows nothing"


@pytest.mark.parametrize("kind", ["bits per token", "bits per chunk", "normal per document", "autoregressive bits"])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "joint"])
def test_probabilities_of_all_continuations_sum_to_one(kind: str, method: str) -> None:
    check_normalisation(planted(kind), [0, 1], 3, method=method, samples=256)


def test_joint_probabilities_of_all_texts_sum_to_one() -> None:
    check_normalisation(planted("bits per token"), [0], 4, method="joint", samples=256)


@pytest.mark.parametrize(("kind", "at_least"), [("bits per token", 3.0), ("bits per chunk", 1.5)])
def test_the_leak_is_found_out(kind: str, at_least: float) -> None:
    """Power: the planted posterior in the naive adapter sums to far more than 1."""
    assert leak_sum(planted(kind), [0, 1], 3) > at_least


def test_an_untrained_decoder_would_not_show_the_leak() -> None:
    """Why the tests plant: at initialisation the dishonest sum is near 1."""
    assert abs(leak_sum(tiny(vocabulary=2, events=1, steps=0), [0, 1], 3) - 1) < 0.3


@pytest.mark.parametrize("defensive", [0.0, 0.3])
def test_any_share_of_prior_paths_is_weighted_correctly(defensive: float) -> None:
    for method in ("operational", "iwae"):
        found = probability_sum(planted("bits per chunk"), [0, 1], 2, method=method, samples=512, defensive=defensive)
        assert abs(found.total - 1) < 4 * found.standard_error + 1e-4
        assert found.standard_error < 0.1


@pytest.mark.parametrize("kind", ["bits per token", "bits per document"])
def test_batch_size_order_and_padding_change_nothing(kind: str) -> None:
    for method in METHODS:
        check_keyed_randomness(planted(kind), REQUESTS, method=method)


def test_a_decoder_without_latents_is_exact_by_every_method() -> None:
    check_no_latents_no_noise(build(small_config("vanilla")), [([3, 1], [4, 1, 5]), ([9], [2, 6])])


@pytest.mark.parametrize("method", ["operational", pytest.param("iwae", marks=pytest.mark.conformance)])
def test_error_bars_cover_the_truth_and_shrink(method: str) -> None:
    model = planted("bits per token")
    check_coverage(model, [0, 1], [1, 1, 0], method=method)
    check_shrinking_error(model, [0, 1], [1, 1, 0], method=method, trials=20)


@pytest.mark.parametrize("last_latent", ["posterior", "prior"])
@pytest.mark.parametrize("kind", ["bits per token", "bits per chunk", "normal per document", "autoregressive bits"])
def test_sampled_frequencies_equal_scores(kind: str, last_latent: str) -> None:
    model = planted(kind)
    check_sampler_agreement(model, [1, 1, 0], 2, last_latent=last_latent, draws=4000)
    if kind != "normal per document":
        check_sampler_agreement(model, [0, 1], 2, last_latent=last_latent, draws=4000, samples=None)


def test_a_point_mass_posterior_falls_back_on_the_prior() -> None:
    model = tiny("chunk:2", prior=FairBits)
    encode = model.encoder.forward
    model.encoder.forward = lambda context, objective=None: PointBits(encode(context).logits)
    scores = score_continuations(model, REQUESTS[:1], method="iwae", samples=64)
    prior = score_continuations(model, REQUESTS[:1], method="prior", samples=64)
    assert scores[0].value == pytest.approx(prior[0].value)
    found = probability_sum(model, [0, 1], 2, samples=256)
    assert abs(found.total - 1) < 4 * found.standard_error + 1e-4


def test_more_samples_never_lower_the_expected_bound() -> None:
    """E[log-mean-exp] rises with K, from the ELBO towards the likelihood."""
    model, (context, continuation) = planted("bits per chunk"), REQUESTS[0]
    truth = exact_log_likelihood(model, context, continuation, target="prior")
    means = []
    for samples in (1, 4, 32):
        scores = score_continuations(
            model, [(context, continuation)] * 400, method="iwae", samples=samples, keys=list(range(400)), defensive=0
        )
        means.append(sum(score.value for score in scores) / 400)
    elbo = score_continuations(model, [(context, continuation)], method="elbo", samples=400)[0].value
    assert elbo - 0.1 < means[0] < means[1] < means[2] < truth + 0.03
    assert math.isclose(elbo, means[0], abs_tol=0.1)


def test_scoring_leaves_random_state_and_mode_alone() -> None:
    model = planted("bits per chunk").train()
    before = torch.get_rng_state()
    score_continuations(model, REQUESTS[:1])
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    model.eval()
