"""Scores to a precision: fixed shares of paths, estimates at a quarter of the samples, verdicts, samples to a tolerance, the
particle filter, refined proposals, and what a call is going to cost."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from statistics import fmean, stdev

import pytest
import torch

from latentlm.composed import ComposedDecoder, build
from latentlm.config import ModelConfig, parse
from latentlm.errors import UserError
from latentlm.interface import Gaussian, Latent, Latents, Noise
from latentlm.likelihood import bits_per_byte, log_mean_exp, paired_difference, score_continuations, score_texts
from latentlm.likelihood.estimating import FIRST_SAMPLES
from latentlm.likelihood.filtering import filtered, open_latents
from latentlm.likelihood.paths import draw_paths, from_target, mixture
from latentlm.likelihood.planning import plan
from latentlm.likelihood.quantiles import pooled_freedom, t_quantile
from latentlm.likelihood.refining import Curved, refined
from latentlm.likelihood.results import Score, effective_samples, remaining
from latentlm.likelihood.scoring import texts_to_score
from latentlm.likelihood.texts import Texts
from latentlm.likelihood.weights import log_weights
from latentlm.testing import check_exactness
from latentlm.testing.exact import exact_log_likelihood
from likelihood_parts import StandardNormal, tiny
from one_block import filled
from samples import small_config

REQUESTS = [([0, 1], [1, 1, 0]), ([1, 1, 0], [1, 0, 0]), ([1], [1, 0, 0]), ([0, 1, 1], [0])]
TEXT = [0, 1, 1, 0, 1, 0, 0, 1, 1]


@cache
def bits() -> ComposedDecoder:
    return tiny(vocabulary=2, events=1)


@cache
def vector() -> ComposedDecoder:
    return tiny("document", prior=StandardNormal, events=1)


def score_of(value: float, error: float, quarter: float, tolerance: float = 1.0) -> Score:
    """Of a bias that halves with four times the samples, so that the last gain is what is left."""
    sixteenth = quarter - 2 * (value - quarter)
    return Score(value, error, 8, 16, 4, "iwae", quarter=quarter, sixteenth=sixteenth, tolerance=tolerance)


# ---------------------------------------------------------------------------------------------------- defensive paths


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.3, 0.5, 0.9])
def test_every_beginning_of_the_paths_holds_its_share(share: float) -> None:
    chosen = from_target(share, 0, 1000)
    for count in range(1, 1001):
        assert sum(k < count for k in chosen) == math.floor(count * share + 1e-9)
    assert from_target(share, 16, 64) == [k for k in chosen if 16 <= k < 64]


def test_paths_of_the_target_are_the_ones_that_a_prior_proposal_draws() -> None:
    model = bits()
    texts = Texts.of(model, [TEXT], [1])
    noise = Noise.keyed(0, ["a"], samples=8)
    mixed = draw_paths(model, texts.context, texts.lengths, noise, target="prior", proposal="posterior", defensive=0.25)
    prior = draw_paths(model, texts.context, texts.lengths, noise, target="prior", proposal="target")
    same = (mixed.latents.value == prior.latents.value).flatten(1).all(1)
    assert same.tolist() == [k in (3, 7) for k in range(8)]


def test_samples_that_join_weigh_what_they_would_have_weighed_together() -> None:
    model = bits()
    texts = Texts.of(model, [TEXT, TEXT[:5]], [1, 1])
    keys = ["a", "b"]
    settings = {"target": "prior", "proposal": "posterior", "defensive": 0.3}
    whole = log_weights(model, texts, Noise.keyed(0, keys, samples=20), **settings)  # type: ignore[arg-type]
    first = log_weights(model, texts, Noise.keyed(0, keys, samples=7), **settings)  # type: ignore[arg-type]
    more = log_weights(model, texts, Noise.keyed(0, keys, samples=13, first=7), first=7, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(first.plus(more).log_weights, whole.log_weights, rtol=0, atol=1e-4)
    assert not torch.allclose(whole.log_weights[:, :7], first.log_weights), "a share of 2 in 7 is not one of 6 in 20"


def test_the_weight_divides_by_the_mixture_of_the_paths_in_fact_drawn() -> None:
    assert mixture(torch.tensor(-1.0), torch.tensor(-2.0), 0.0) == -1.0
    assert mixture(torch.tensor(-1.0), torch.tensor(-2.0), 1.0) == -2.0
    expected = math.log(0.75 * math.exp(-1) + 0.25 * math.exp(-2))
    assert float(mixture(torch.tensor(-1.0), torch.tensor(-2.0), 0.25)) == pytest.approx(expected, abs=1e-6)


def test_errors_of_two_fixed_kinds_are_those_within_the_kinds() -> None:
    """Half of the weights are 1 and half are 3: the mean is known, however many there are."""
    strata = torch.tensor([True, False] * 8)
    logs = torch.where(strata, 0.0, math.log(3.0))[None]
    value, error = log_mean_exp(logs, strata)
    assert float(value) == pytest.approx(math.log(2.0))
    assert float(error) == pytest.approx(0, abs=1e-12)
    assert float(log_mean_exp(logs)[1]) > 0.1
    noise = torch.randn(400, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3
    values, errors = log_mean_exp(logs.double() + noise, strata)
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.15)


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_a_quarter_is_the_mean_of_four_estimates() -> None:
    model = bits()
    texts = Texts.of(model, [TEXT], [1])
    found = log_weights(
        model, texts, Noise.keyed(0, [("continuation", "a")], samples=16), target="prior", proposal="posterior", defensive=0.5
    )
    assert found.count == 16
    by_hand = fmean(log_mean_exp(found.run(start, start + 4))[0].item() for start in (0, 4, 8, 12))
    score = score_continuations(model, [(TEXT[:1], TEXT[1:])], method="iwae", samples=16, keys=["a"])[0]
    assert score.quarter == pytest.approx(by_hand, abs=1e-4)
    assert score.value > score.quarter
    assert math.isnan(score_continuations(model, REQUESTS[:1], samples=3)[0].quarter)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.25])
def test_what_is_left_is_judged_by_how_gains_shrink(power: float) -> None:
    """Values log p - K^-power at K = 16, 64, 256: what is left at 256 is found; of fast decay half the gain before, more."""
    sixteenth, quarter, value = (-(float(count) ** -power) for count in (16, 64, 256))
    assert remaining(value, quarter, sixteenth) == pytest.approx(max(-value, (quarter - sixteenth) / 2))


def test_a_last_gain_that_is_small_by_luck_counts_for_half_the_one_before() -> None:
    assert remaining(-10.0, -10.0, -11.0) == pytest.approx(0.5)
    assert remaining(-10.0, -9.0, -14.0) == pytest.approx(2.5), "a value below its quarter is luck too"
    assert remaining(-10.0, -10.6, -11.6) == pytest.approx(0.6 * 0.6 / 0.4), "a larger one is taken as it is"


def test_gains_that_do_not_shrink_or_are_not_known_count_fourfold() -> None:
    assert remaining(-10.0, -12.0, -14.0) == 8.0
    assert remaining(-10.0, -12.0, math.nan) == 8.0
    assert remaining(-10.0, -9.0, math.nan) == 0.0
    assert math.isnan(remaining(-10.0, math.nan, math.nan))


def test_the_uncertainty_is_error_and_bias_and_the_verdict_is_by_the_tolerance() -> None:
    score = score_of(-10.0, 0.2, -10.5, tolerance=0.9)
    assert score.bias == pytest.approx(0.5)
    assert score.uncertainty == pytest.approx(0.892, abs=1e-4)
    assert score.converged
    assert not score_of(-10.0, 0.2, -10.6, tolerance=0.9).converged
    assert score_of(-10.0, 0.2, -9.5).bias == 0, "noise is no bias"
    assert score_of(-10.0, 0.2, math.nan).uncertainty == math.inf


def test_an_error_that_rests_on_few_samples_makes_a_wider_interval() -> None:
    few, many = (replace(score_of(-10.0, 0.2, -10.5), freedom=freedom) for freedom in (1.0, math.inf))
    assert few.interval == pytest.approx((-10 - 12.7062 * 0.2, -10 + 12.7062 * 0.2 + 0.5), abs=1e-4)
    assert many.interval == pytest.approx((-10 - 1.96 * 0.2, -10 + 1.96 * 0.2 + 0.5), abs=1e-4)
    assert t_quantile(10.0) == pytest.approx(2.2281, abs=1e-3)
    assert pooled_freedom([1.0, 1.0], [4.0, 4.0]) == pytest.approx(8.0)
    assert pooled_freedom([1.0, 0.0], [4.0, 1.0]) == pytest.approx(4.0)


def test_over_windows_biases_add_up_and_errors_in_quadrature() -> None:
    total = score_of(-10.0, 0.3, -10.5).plus(score_of(-20.0, 0.4, -20.25))
    assert (total.bias, total.standard_error, total.tolerance) == (pytest.approx(0.75), pytest.approx(0.5), 2.0)
    found = bits_per_byte([score_of(-10.0, 0.3, -10.5), score_of(-20.0, 0.4, -19.75)], [10, 10])
    assert found.bias == pytest.approx(0.25 / 20 / math.log(2)), "the noise of one takes from the gain of the other"
    assert found.uncertainty == pytest.approx((1.96 * 0.5 + 0.25) / 20 / math.log(2), rel=1e-4)
    assert found.converged(0.1)
    assert not found.converged(0.08)


def test_a_difference_is_as_biased_as_the_worse_of_two() -> None:
    exact, rough = score_of(-10.0, 0.0, -10.0), score_of(-11.0, 0.1, -12.0)
    assert paired_difference([rough], [exact], [10]).bias == pytest.approx(1.0 / 10 / math.log(2))
    assert paired_difference([exact], [rough], [10]).bias == pytest.approx(1.0 / 10 / math.log(2))


def test_a_decoder_without_latents_is_converged_whatever_is_asked_for() -> None:
    (score,) = score_texts(build(small_config("vanilla")), [[3, 1, 4, 1, 5]], tolerance=1e-9)
    assert (score.samples, score.uncertainty, score.converged) == (0, 0.0, True)


@pytest.mark.parametrize("count", [16, 64])
def test_error_and_bias_cover_the_truth_where_the_error_alone_does_not(count: int) -> None:
    """Log-normal weights of mean 1, as heavy as a document's: the truth is 0."""
    normal = torch.randn(4000, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logs = 1.5 * normal - 1.5**2 / 2
    values, errors = log_mean_exp(logs)
    quarters = torch.stack([log_mean_exp(part)[0] for part in logs.chunk(4, dim=1)]).mean(0)
    freedoms = (effective_samples(logs) - 1).clamp(min=1)
    numbers = (part.tolist() for part in (values, errors, quarters, freedoms))
    scores = [replace(score_of(*one), freedom=freedom) for *one, freedom in zip(*numbers, strict=True)]
    alone = fmean(abs(score.value) <= 1.96 * score.standard_error for score in scores)
    within = fmean(score.interval[0] <= 0 <= score.interval[1] for score in scores)
    assert alone < 0.88
    assert 0.9 < within < 0.98


# ------------------------------------------------------------------------------------------------------ to a tolerance


@pytest.mark.parametrize("method", ["operational", "iwae", "smc", "prior"])
def test_auto_doubles_until_a_score_is_good_enough_and_is_what_that_many_samples_give(method: str) -> None:
    model = bits()
    tolerance = 0.6 if method == "prior" else 0.25
    found = score_continuations(model, REQUESTS, method=method, samples="auto", tolerance=tolerance, max_samples=8192)  # type: ignore[arg-type]
    assert all(score.converged for score in found)
    for request, score in zip(REQUESTS, found, strict=True):
        assert math.log2(score.samples / FIRST_SAMPLES) % 1 == 0
        (fixed,) = score_continuations(model, [request], method=method, samples=score.samples, tolerance=tolerance)  # type: ignore[arg-type]
        assert fixed.value == pytest.approx(score.value, abs=1e-4)
        assert fixed.standard_error == pytest.approx(score.standard_error, abs=1e-3)
        if score.samples > FIRST_SAMPLES:
            (fewer,) = score_continuations(model, [request], method=method, samples=score.samples // 2, tolerance=tolerance)  # type: ignore[arg-type]
            assert not fewer.converged


def test_auto_gives_up_at_its_limit_and_says_so() -> None:
    (score,) = score_continuations(bits(), REQUESTS[:1], samples="auto", tolerance=1e-6, max_samples=100)
    assert score.samples == 64
    assert not score.converged


def test_requests_that_need_more_do_not_change_the_others() -> None:
    alone = [score_continuations(bits(), [request], samples="auto", tolerance=0.2)[0] for request in REQUESTS]
    together = score_continuations(bits(), REQUESTS, samples="auto", tolerance=0.2)
    assert len({score.samples for score in together}) > 1, "the test shows nothing"
    for one, other in zip(alone, together, strict=True):
        assert one.samples == other.samples
        assert one.value == pytest.approx(other.value, abs=1e-4)


def test_a_text_is_good_to_bits_per_byte_of_each_window() -> None:
    (score,) = score_texts(bits(), [TEXT], method="iwae", tolerance=0.1)
    assert score.tolerance == pytest.approx(0.1 * 8 * math.log(2)), "without a tokenizer a token is a byte"
    assert score.converged
    (rough,) = score_texts(bits(), [TEXT], method="iwae", tolerance=1.0)
    assert rough.samples < score.samples


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"samples": "many"}, 'neither a number nor "auto"'),
        ({"samples": "auto", "max_samples": 8}, "begins with 32"),
        ({"tolerance": 0.0}, "tolerance must be a finite number above 0, not 0"),
        ({"tolerance": math.nan}, "above 0, not nan"),
        ({"tolerance": math.inf}, "above 0, not inf"),
        ({"tolerance": [math.nan]}, "above 0, not nan"),
        ({"refine": -1}, "refine must be at least 0, not -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        score_continuations(bits(), REQUESTS[:1], **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", ["vanilla", "free"])
@pytest.mark.parametrize("method", ["operational", "iwae", "smc"])
def test_broken_weights_make_no_score(decoder: str, method: str) -> None:
    model = build(small_config(decoder))
    with torch.no_grad():
        model.backbone.norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match="not a number"):
        score_continuations(model, [([3, 1], [4, 1])], method=method, samples=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("wrong", [math.nan, -1.0])
def test_every_tolerance_is_looked_at(place: int, wrong: float) -> None:
    tolerances = [0.1, 0.1]
    tolerances[place] = wrong
    with pytest.raises(UserError, match=f"tolerance must be a finite number above 0, not {wrong}"):
        score_continuations(bits(), REQUESTS[:2], tolerance=tolerances)


def test_a_bound_never_passes_for_the_likelihood() -> None:
    """However many samples: its error is known, how far above it the truth lies is not."""
    score, other = score_continuations(bits(), REQUESTS[:2], method="elbo", samples=512, tolerance=5.0)
    assert score.standard_error < 0.1
    assert not score.converged
    assert score.interval == (pytest.approx(score.value, abs=0.2), math.inf)
    assert not bits_per_byte([score, other], [3, 3]).converged(5.0)


def test_a_difference_from_what_is_not_known_is_not_known() -> None:
    known, unknown = score_of(-10.0, 0.1, -10.5), score_of(-10.0, 0.1, math.nan)
    for first, second in ((known, unknown), (unknown, known)):
        assert math.isnan(paired_difference([first], [second], [10]).bias)


def test_progress_counts_what_is_done() -> None:
    seen: list[tuple[int, int]] = []
    score_continuations(
        bits(), REQUESTS, samples="auto", tolerance=0.2, batch_size=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (len(REQUESTS), len(REQUESTS))
    assert seen == sorted(seen)


def test_a_plan_counts_without_scoring_all() -> None:
    model = bits()
    requests, owners, how = texts_to_score(model, [TEXT * 3, TEXT], max_samples=128)
    found = plan(model, requests, how)
    assert owners == [0, 0, 1]
    assert (found.requests, found.tokens, found.samples) == (3, 26 + 8, (32, 128))
    assert 0 < found.seconds[0] < found.seconds[1]
    assert found.memory > 0
    _, _, how = texts_to_score(model, [TEXT], max_samples=200)  # no power of two
    assert plan(model, requests, how).samples == (32, 128)


# ---------------------------------------------------------------------------------------------------- particle filter


@pytest.mark.conformance
def test_few_particles_are_unbiased_for_the_likelihood() -> None:
    model, (context, continuation) = bits(), REQUESTS[1]
    truth = exact_log_likelihood(model, context, continuation, target="generation")
    requests = [(context, continuation)] * 1500
    found = [math.exp(score.value) for score in score_continuations(
        model, requests, method="smc", samples=32, keys=list(range(1500)), batch_size=500
    )]  # fmt: skip
    error = stdev(found) / math.sqrt(len(found))
    assert abs(fmean(found) - math.exp(truth)) < 4 * error
    assert error < 0.05 * math.exp(truth), "too blunt to show anything"


def test_the_filter_resamples_and_its_predictions_make_its_estimate() -> None:
    model = bits()
    texts = Texts.of(model, [TEXT, TEXT[:6]], [1, 1])
    found = filtered(model, texts, Noise.keyed(0, ["a", "b"], samples=64), particles=16, target="prior")
    assert int(found.resampled.min()) >= 1, "without resampling the test shows nothing"
    assert found.log_weights.shape == (2, 4)
    assert len({round(nats, 6) for nats in found.log_weights[0].tolist()}) == 4, "islands know nothing of one another"
    torch.testing.assert_close(found.token_nats.sum(-1), log_mean_exp(found.log_weights)[0], rtol=0, atol=1e-5)
    assert found.token_nats[1, 5:].tolist() == [0.0] * 3


def test_predictions_of_the_next_token_sum_to_one() -> None:
    """The filter up to the last token does not see it, so its predictions of all values are one distribution."""
    model = tiny()
    noise = Noise.keyed(0, ["a"], samples=16)
    texts = [Texts.of(model, [[0, 1, 2, token]], [2]) for token in range(3)]
    ends = [filtered(model, each, noise, particles=4, target="generation").token_nats[0, -1] for each in texts]
    assert float(torch.stack(ends).exp().sum()) == pytest.approx(1.0, abs=1e-6)


def test_a_latent_that_is_open_to_the_end_is_proposed_and_the_others_are_not() -> None:
    assert open_latents(vector(), TEXT, 1) == ("z",)
    assert open_latents(bits(), TEXT, 1) == ()
    chunked = tiny("chunk:4", vocabulary=2)
    assert open_latents(chunked, TEXT[:5], 1) == ("z",)
    assert open_latents(chunked, TEXT, 1) == ()
    (score,) = score_texts(vector(), [[0, 1, 1, 0]], method="smc", samples=8)
    assert score.proposal == "posterior"


def test_resampling_lets_a_filter_do_with_fewer_particles_than_prior_samples() -> None:
    model = bits()
    text = TEXT + TEXT[1:]
    by_filter, by_prior = (
        [score.value for score in score_texts(model, [text] * 60, method=method, samples=64, keys=list(range(60)))]  # type: ignore[arg-type]
        for method in ("smc", "prior")
    )
    assert stdev(by_filter) < 0.8 * stdev(by_prior)


# ----------------------------------------------------------------------------------------------------- refined proposals


@pytest.mark.parametrize("method", ["operational", "iwae", "smc"])
def test_scores_stay_exact_under_refined_proposals(method: str) -> None:
    model = vector()
    for context, continuation in REQUESTS[:3]:
        target = "prior" if method == "iwae" else "generation"
        truth = exact_log_likelihood(model, context, continuation, target=target)  # type: ignore[arg-type]
        (score,) = score_continuations(model, [(context, continuation)], method=method, samples=1024, refine=20)  # type: ignore[arg-type]
        assert abs(score.value - truth) < 4.5 * score.standard_error + 2e-5


def test_refining_moves_a_bad_proposal_to_where_the_text_is_explained() -> None:
    model = vector()
    texts = Texts.of(model, [TEXT, TEXT[::-1]], [1, 1])
    better = refined(model, texts, Noise.keyed(0, ["a", "b"]), target="prior", last_latent="posterior", steps=60)
    assert better is not None
    noise = Noise.keyed(1, ["a", "b"], samples=64)
    settings = {"target": "prior", "proposal": "posterior"}
    plain = log_weights(model, texts, noise, **settings)  # type: ignore[arg-type]
    moved = log_weights(model, texts, noise, refined={"z": better}, **settings)  # type: ignore[arg-type]
    assert bool((moved.log_weights.std(1) < 0.7 * plain.log_weights.std(1)).all())


CHUNKED = [([0, 1, 1, 0, 1], [1, 0, 0]), ([0, 1], [0, 1]), ([1, 1, 0, 0, 1, 1, 0, 1, 1], [0, 1, 1])]
OPEN = [1, 0, 2]
"""The chunks of four into which their continuations fall."""


def chunks() -> ComposedDecoder:
    return tiny("chunk:4", prior=StandardNormal, events=3, vocabulary=2)


@pytest.mark.parametrize("last_latent", ["posterior", "prior"])
def test_a_refined_gaussian_has_the_covariance_of_the_curvature(last_latent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, of a likelihood that is quadratic: with the precision of what the target draws the open site from."""
    model, site = chunks(), torch.tensor(OPEN)
    texts = Texts.of(model, [context + continuation for context, continuation in CHUNKED], [5, 2, 9])
    roots = filled(3, 3, 3, seed=4)
    precision = 4 * roots @ roots.mT  # (B, E, E)

    def quadratic(model: object, texts: object, latents: Latents, *, greedy: bool) -> tuple[torch.Tensor, None]:
        vectors = latents.value.unflatten(0, (3, -1))[torch.arange(3), :, site].double()  # (B, k, E)
        return -0.5 * ((vectors @ precision.double()) * vectors).sum(-1), None

    monkeypatch.setattr("latentlm.likelihood.refining.path_likelihood", quadratic)
    monkeypatch.setattr("latentlm.likelihood.refining.GRADIENT_TOKENS", 50)
    settings = {"target": "generation", "last_latent": last_latent, "steps": 3}
    found = refined(model, texts, Noise.keyed(0, range(3)), **settings)  # type: ignore[arg-type]
    assert isinstance(found, Curved)
    std = torch.ones(3, 3)
    if last_latent == "posterior":
        std = model.posterior(texts.context.before(texts.lengths), "z").log_std.exp()[torch.arange(3), site]  # type: ignore[attr-defined]
    covariance = torch.linalg.inv(precision + torch.diag_embed(std**-2))
    factors = found.scale_trils[found.which[torch.arange(3), site]]
    torch.testing.assert_close(factors @ factors.mT, covariance, rtol=2e-3, atol=1e-4)
    assert int((found.which >= 0).sum()) == 3, "no other site has one"


def test_curved_proposals_are_normal_distributions_of_torchs() -> None:
    rows, mean = torch.tensor([1, 0, 1, 1]), filled(2, 2, 3, seed=1)
    factors = 0.3 * filled(2, 3, 3, seed=2).tril(-1) + 0.5 * torch.eye(3)
    which = torch.tensor([[0, -1], [-1, 1]])
    q = Curved(Gaussian(mean, torch.full_like(mean, -0.5)), which, factors).select(rows)
    noise = Noise.keyed(3, range(4))
    latent = q.sample(noise)
    plain = torch.diag_embed(torch.full_like(mean, math.exp(-0.5)))
    scale_tril = torch.where((which >= 0)[..., None, None], factors[which], plain)
    torchs = torch.distributions.MultivariateNormal(mean[rows], scale_tril=scale_tril[rows])
    torch.testing.assert_close(q.log_prob(latent), torchs.log_prob(latent.value))
    drawn = mean[rows] + (scale_tril[rows] @ noise.normal(2, 3)[..., None])[..., 0]
    torch.testing.assert_close(latent.value, drawn)
    torch.testing.assert_close(q.narrow(1, 1).log_prob(Latent(latent.value[:, 1:])), torchs.log_prob(latent.value)[:, 1:])
    wider = torch.distributions.MultivariateNormal(mean[rows], scale_tril=2 * scale_tril[rows])
    torch.testing.assert_close(q.tempered(2.0).log_prob(latent), wider.log_prob(latent.value))


def test_a_curvature_that_is_no_number_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: object, texts: object, latents: Latents, *, greedy: bool) -> tuple[torch.Tensor, None]:
        nats = -latents.value.unflatten(0, (2, -1)).square().sum((-1, -2))  # (B, k)
        return nats * torch.tensor([[1.0], [1.0 if nats.shape[1] == 1 else math.inf]]), None

    monkeypatch.setattr("latentlm.likelihood.refining.path_likelihood", broken)
    texts = Texts.of(vector(), [TEXT, TEXT[::-1]], [1, 1])
    found = refined(vector(), texts, Noise.keyed(0, range(2)), target="prior", last_latent="posterior", steps=2)
    assert isinstance(found, Curved)
    assert found.which.tolist() == [[0], [-1]]


def test_more_dimensions_or_latents_keep_a_diagonal_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(model: ComposedDecoder) -> type:
        texts = Texts.of(model, [TEXT], [1])
        return type(refined(model, texts, Noise.keyed(0, ["a"]), target="prior", last_latent="posterior", steps=1))

    assert kind(vector()) is Curved
    both = {"intent": {"like": "gaussian", "dims": 2}, "bits": {"like": "free", "dims": 2}}
    sizes = {"vocabulary": 3, "width": 16, "blocks": 4, "heads": 2, "context": 16}
    config = parse(ModelConfig, {"decoder": "composed", "backbone": sizes, "latents": both}, source="test")
    assert kind(build(config)) is Gaussian
    monkeypatch.setattr("latentlm.likelihood.refining.MOST_DIMS", 0)
    assert kind(vector()) is Gaussian


@pytest.mark.parametrize("last_latent", ["posterior", "prior"])
@pytest.mark.parametrize("method", ["operational", "smc"])
def test_refined_continuations_depend_on_no_other(method: str, last_latent: str) -> None:
    """Of texts of one, two and three sites, of which rounds leave some."""
    settings = {"method": method, "samples": "auto", "max_samples": 128, "refine": 5, "last_latent": last_latent}
    tolerances = [1e-4, 1e-4, 10.0]  # the text of the most sites is done first
    together = score_continuations(chunks(), CHUNKED, **settings, tolerance=tolerances)  # type: ignore[arg-type]
    assert [score.samples for score in together] == [128, 128, 32]
    for request, tolerance, score in zip(CHUNKED, tolerances, together, strict=True):
        (alone,) = score_continuations(chunks(), [request], **settings, tolerance=tolerance)  # type: ignore[arg-type]
        assert (alone.value, alone.samples) == (pytest.approx(score.value, abs=1e-4), score.samples)


def test_a_filter_keeps_the_vectors_that_the_whole_text_speaks_for() -> None:
    """Proposed vectors begin with less weight than those of the prior; resampled by that at once they were lost, and islands
    differed six times as much."""
    model = tiny("document", prior=StandardNormal, events=4)
    with torch.no_grad():
        model.injection.map.weight.mul_(3)  # type: ignore[operator,union-attr]
        texts = Texts.of(model, [(2 * TEXT)[:16]], [1])
        settings = {"target": "prior", "last_latent": "posterior"}
        q = refined(model, texts, Noise.keyed(0, ["a"]), steps=60, **settings)  # type: ignore[arg-type]
        assert q is not None
        several = {"defensive": 0.5, "refined": {"z": q}, **settings}
        noise = [Noise.keyed(seed, ["a"], samples=512) for seed in (1, 2)]
        found = filtered(model, texts, noise[0], particles=8, proposed=("z",), **several).log_weights  # type: ignore[arg-type]
        weights = log_weights(model, texts, noise[1], proposal="posterior", **several).log_weights  # type: ignore[arg-type]
    eights = log_mean_exp(weights.view(64, 8))[0]
    assert float(found.std()) < 1.5 * float(eights.std())
    assert float(log_mean_exp(found)[0] - log_mean_exp(weights)[0]) == pytest.approx(0, abs=0.1)


def test_predictions_on_the_way_know_all_of_a_proposals_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tokens before, not of how many are to come: where nothing is resampled, a text predicts as its beginning does."""
    monkeypatch.setattr("latentlm.likelihood.filtering.RESAMPLE_BELOW", 0.0)
    model = tiny("document", prior=StandardNormal, events=4)
    settings = {"target": "prior", "last_latent": "posterior"}
    long = (2 * TEXT)[:14]
    with torch.no_grad():
        q = refined(model, Texts.of(model, [long], [1]), Noise.keyed(0, ["a"]), steps=30, **settings)  # type: ignore[arg-type]
        several = {"defensive": 0.5, "refined": {"z": q}, "particles": 8, "proposed": ("z",), **settings}
        whole, beginning = (
            filtered(model, Texts.of(model, texts, [1] * len(texts)), Noise.keyed(1, ["a"] * len(texts), samples=64), **several)  # type: ignore[arg-type]
            for texts in ([long], [long[:6]])
        )
    assert whole.token_nats[0, :5].tolist() == pytest.approx(beginning.token_nats[0].tolist(), abs=1e-6)
    assert whole.greedy[0, :5].tolist() == beginning.greedy[0].tolist()
    assert len(set(whole.token_nats[0].tolist())) == 13


def steps_of_refining(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The gradient steps of each refining from now on."""
    steps = []

    def counted(*args: object, **more: object) -> object:
        steps.append(more["steps"])
        return refined(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("latentlm.likelihood.estimating.refined", counted)
    return steps


def test_what_samples_do_not_settle_is_refined_longer_and_weighed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """By other draws than those by which it was chosen; what is settled keeps its score."""
    settings = {"method": "iwae", "samples": "auto", "max_samples": 64, "tolerance": 1e-4, "refine": 3}
    once = score_texts(vector(), [TEXT, TEXT[:4]], **settings)  # type: ignore[arg-type]
    longer = score_texts(vector(), [TEXT], **{**settings, "refine": 12})[0]  # type: ignore[arg-type]
    steps = steps_of_refining(monkeypatch)
    assert score_texts(vector(), [TEXT, TEXT[:4]], **settings) == once  # type: ignore[arg-type]
    assert steps == [3]
    first_is_not = lambda weights: [number > 0 for number in range(len(weights))]  # noqa: E731
    monkeypatch.setattr("latentlm.likelihood.estimating.settled", first_is_not)
    again = score_texts(vector(), [TEXT, TEXT[:4]], **settings)  # type: ignore[arg-type]
    assert steps == [3, 3, 12]
    assert again[1] == once[1]
    assert len({once[0].value, longer.value, again[0].value}) == 3
    assert again[0].value == pytest.approx(once[0].value, abs=4 * once[0].standard_error)
    fixed = score_texts(vector(), [TEXT], **{**settings, "samples": 64})[0]  # type: ignore[arg-type]
    assert (fixed.settled, fixed.samples) == (0.0, 64)
    assert steps == [3, 3, 12, 3], "what is asked for by number is what is given"


def test_what_has_no_proposal_is_not_weighed_anew_because_its_neighbour_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is proposed for one target; and what filters go on with is not refined anew."""
    settings = {"method": "iwae", "samples": "auto", "max_samples": 64, "tolerance": 1e-4, "refine": 3}
    monkeypatch.setattr("latentlm.likelihood.estimating.settled", lambda weights: [False] * len(weights))
    keys: dict[str, object] = {"keys": ["short", "long"]}
    together = score_texts(vector(), [TEXT[:2], TEXT], **keys, **settings)[0]  # type: ignore[arg-type]
    alone = score_texts(vector(), [TEXT[:2]], keys=["short"], **settings)[0]  # type: ignore[arg-type]
    assert together.value == pytest.approx(alone.value, abs=1e-6)
    steps = steps_of_refining(monkeypatch)
    monkeypatch.setattr("latentlm.likelihood.estimating.islands_agree", lambda weights: [False] * len(weights))
    latents = {"intent": {"like": "gaussian", "dims": 2}, "bits": {"like": "free", "dims": 3}}
    config = ModelConfig.model_validate({"decoder": "composed", "backbone": small_config().backbone, "latents": latents})
    filtered_on = score_texts(build(config), [TEXT], **{**settings, "method": "auto"})[0]  # type: ignore[arg-type]
    assert (filtered_on.method, steps) == ("smc", [3])


def test_a_refined_proposal_depends_on_its_text_alone() -> None:
    settings = {"method": "iwae", "samples": 16, "refine": 10}
    together = score_texts(vector(), [TEXT, TEXT[:4], TEXT[2:]], **settings)  # type: ignore[arg-type]
    for text, score in zip([TEXT, TEXT[:4], TEXT[2:]], together, strict=True):
        assert score_texts(vector(), [text], **settings)[0].value == pytest.approx(score.value, abs=1e-3)  # type: ignore[arg-type]


def test_what_cannot_be_refined_is_scored_as_before() -> None:
    plain, asked = (score_texts(bits(), [TEXT], samples=16, refine=steps)[0] for steps in (0, 10))
    assert plain == asked


def test_exactness_holds_at_any_share_of_the_targets_paths() -> None:
    check_exactness(tiny("chunk:2"), REQUESTS, method="iwae", samples=512, seed=1)
