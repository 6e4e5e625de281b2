"""Scores are log-probabilities: the enumerable decoder against sums over all its latents, with its own encoder and with a
planted one that knows the future, so that dishonest scores are found out.

Legend: V vocabulary (3), S sites, E event dimensions (2), K samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import fmean, stdev
from typing import Literal

import torch

from latentlm.composed import ComposedDecoder
from latentlm.errors import UserError
from latentlm.interface import Batch, LatentDecoder
from latentlm.likelihood import METHODS, Method, score_continuations, score_texts
from latentlm.testing import likelihood as known
from latentlm.testing.exact import count_values, enumeration_limit, exact_elbo, exact_log_likelihood
from latentlm.testing.registry import NotApplicable, check, need
from latentlm.testing.subject import Subject, noise

Request = tuple[list[int], list[int]]

_REQUESTS: list[Request] = [([0, 1], [1, 1]), ([1], [1, 0, 2]), ([0, 1, 1], [0]), ([1, 2, 0], [1, 0])]
_METHODS: tuple[Method, ...] = ("operational", "iwae", "smc", "prior", "elbo", "joint")
_POWER = 0.4
"""Standard errors (nats) beyond which a comparison shows too little. Prior draws of a planted decoder have about half of it."""
_TRIALS = 100
_DRAWS = 3000


def _requests(model: LatentDecoder) -> list[Request]:
    """Those whose latents can all be summed over; one where that is an integral. Raises NotApplicable where there are none."""
    limits = [enumeration_limit(model, context, continuation) for context, continuation in _REQUESTS]
    fitting = [request for request, limit in zip(_REQUESTS, limits, strict=True) if limit is None]
    if not fitting:
        raise NotApplicable(f"{limits[0]}; give `exact` fewer event_dims or a coarser granularity")
    return fitting[:1] if _costly(model) else fitting


def _costly(model: LatentDecoder) -> bool:
    """A sum over ten thousand values and more."""
    context, continuation = _REQUESTS[0]
    return count_values(model, context, continuation) > 5000


def _own(subject: Subject) -> LatentDecoder:
    """The enumerable decoder, of which there is a likelihood."""
    need(subject.exact.has_latents, "it has no latents")
    need(subject.normalised, "its prior is not normalised: there is no likelihood (see unnormalised_refused)")
    return subject.exact


def _planted(subject: Subject) -> ComposedDecoder:
    model = _own(subject)
    need(isinstance(model, ComposedDecoder), "a posterior can be planted in a ComposedDecoder only")
    try:
        return subject.planted
    except NotImplementedError as error:
        raise NotApplicable(str(error)) from None


def _wrap(request: Request, model: LatentDecoder) -> Request:
    size = model.config.backbone.vocabulary
    return [token % size for token in request[0]], [token % size for token in request[1]]


@check("likelihood")
def scores_exact_own_encoder(subject: Subject) -> None:
    """With its own encoder, scores equal the sum over all latents within their error bars."""
    model = _own(subject)
    methods = ("operational", "iwae", "smc") if _costly(model) else _METHODS
    for method in methods:
        known.check_exactness(model, _requests(model), method=method, samples=256, power=_POWER, seed=1)


@check("likelihood")
def scores_exact_planted(subject: Subject) -> None:
    """With a posterior that knows the future, scores equal the sum over all latents within their error bars."""
    model = _planted(subject)
    methods = ("operational", "iwae", "smc") if _costly(model) else _METHODS
    for method in methods:
        # Of a whole text, and from the prior, planted weights are heavy: more samples of fewer requests.
        heavy = method in ("joint", "prior")
        requests = _requests(model)[:1] if heavy else _requests(model)
        known.check_exactness(model, requests, method=method, samples=1024 if heavy else 256, power=_POWER, seed=1)
    for last in _last_latents(model):
        known.check_exactness(model, _requests(model)[:1], samples=256, last_latent=last, power=_POWER, seed=1)


def _last_latents(model: LatentDecoder) -> list[known.Last]:
    """Those that differ from the default: the prior for all latents, and for each of several alone."""
    alone: list[known.Last] = [{name: "prior"} for name in model.latents]
    return ["prior", *(alone if len(alone) > 1 else [])]


@check("likelihood")
def estimators_agree(subject: Subject) -> None:
    """Of texts too long to sum over, importance sampling and particle filters find the same likelihood, own encoder."""
    model = _own(subject)
    length = min(16, model.config.backbone.context)
    texts = [[token % model.config.backbone.vocabulary for token in row] for row in subject.tokens(2, length + 1, seed=6)]
    scores = [score_texts(model, texts, method=method, samples=512, seed=2) for method in ("iwae", "smc")]  # type: ignore[arg-type]
    for number, (one, other) in enumerate(zip(*scores, strict=True)):
        error = math.hypot(known.blunted(one), known.blunted(other))
        assert error <= _POWER, f"text {number}: an error of {error:.3f} nats is too blunt"
        assert abs(one.value - other.value) <= 4.5 * error + 1e-3, (
            f"text {number}: iwae says {one.value:.4f} +- {one.standard_error:.4f} nats, smc {other.value:.4f} +- "
            f"{other.standard_error:.4f}"
        )


@check("likelihood")
def probabilities_sum_to_one(subject: Subject) -> None:
    """exp(score) of all continuations sums to 1 (`elbo`: to no more), planted."""
    model = _planted(subject)
    for method in _METHODS:
        if method != "joint":
            known.check_normalisation(model, [0, 1], 3, method=method, samples=128, power=0.2)
    known.check_normalisation(model, [0], 3, method="joint", samples=128, power=0.2)


@check("likelihood")
def own_probabilities_sum_to_one(subject: Subject) -> None:
    """The same with the decoder's own encoder, whose posterior must not see what a context hides."""
    model = _own(subject)
    known.check_normalisation(model, [0, 1], 3, method="operational", samples=128, power=0.15)


@check("likelihood")
def leak_found_out(subject: Subject) -> None:
    """Read off under the planted posterior, as dishonest scores are, probabilities sum to more than 1; honest ones do not."""
    model = _planted(subject)
    honest = known.check_normalisation(model, [0, 1], 3, samples=1024)
    dishonest = known.leak_sum(model, [0, 1], 3, samples=256)
    assert dishonest > honest.total + 6 * honest.standard_error + 0.02, (
        f"dishonest probabilities sum to {dishonest:.3f}, honest ones to {honest.total:.3f} +- {honest.standard_error:.3f}: "
        "the checks of honesty show little, since the planted decoder makes little use of its latents (does `leaning` "
        "lean? does the injection reach the logits?)"
    )


@check("likelihood")
def bounds_in_order(subject: Subject) -> None:
    """ELBO <= E[IWAE with 2 samples] <= E[IWAE with 16] <= log p(x), planted."""
    model = _planted(subject)
    context, continuation = _requests(model)[0]
    truth = exact_log_likelihood(model, context, continuation, target="prior")
    elbo = exact_elbo(model, context, continuation)
    assert elbo <= truth + 1e-3, f"the ELBO is {elbo:.4f} nats, above log p(x) = {truth:.4f}"
    trials = 200
    found = {"ELBO": (elbo, 0.0)}
    for samples in (2, 16):
        scores = score_continuations(
            model, [(context, continuation)] * trials, method="iwae", samples=samples, keys=list(range(trials)), defensive=0
        )
        values = [score.value for score in scores]
        found[f"IWAE with {samples} samples"] = (fmean(values), stdev(values) / math.sqrt(trials))
    found["log p(x)"] = (truth, 0.0)
    names = list(found)
    for lower, upper in pairwise(names):
        (one, one_error), (two, two_error) = found[lower], found[upper]
        allowed = 4 * math.hypot(one_error, two_error) + 1e-3
        assert one <= two + allowed, f"{lower} is {one:.4f} nats, above {upper} = {two:.4f} by more than {allowed:.4f}"


@check("likelihood")
def no_latents_no_noise(subject: Subject) -> None:
    """A decoder without latents gives one number by every method."""
    need(not subject.exact.has_latents, "it has latents")
    known.check_no_latents_no_noise(subject.exact, [_wrap(request, subject.exact) for request in _REQUESTS])
    total = known.probability_sum(subject.exact, [0, 1], 3).total
    assert abs(total - 1) < 1e-4, f"probabilities of all continuations sum to {total:.5f}"


@check("likelihood")
def scores_keyed(subject: Subject) -> None:
    """Batch size, order and padding do not change a score, and no global random state does: own encoder and planted."""
    models = [subject.exact] if not subject.exact.has_latents else [_own(subject), _planted(subject)]
    for model in models:
        requests = [_wrap(request, model) for request in _REQUESTS[:4]]
        before = torch.get_rng_state()
        for method in METHODS:
            samples: int | Literal["auto"] = "auto" if method == "auto" else 32 if method == "smc" else 8  # it resamples
            known.check_keyed_randomness(model, requests, method=method, samples=samples)  # type: ignore[arg-type]
        assert torch.equal(before, torch.get_rng_state()), "scoring moves torch's global random state"


@check("likelihood")
def error_bars_honest(subject: Subject) -> None:
    """Error bars cover the exact value 95% of the time and shrink like 1/sqrt(K): own encoder, and planted `operational`."""
    model = _own(subject)
    planted = _planted(subject)
    context, continuation = _requests(model)[0]
    nominal = 0.95 - 4 * math.sqrt(0.95 * 0.05 / _TRIALS)  # within four standard errors of the share itself
    methods: tuple[Method, ...] = ("operational", "iwae")
    for method in methods:
        known.check_coverage(model, context, continuation, method=method, samples=64, trials=_TRIALS, at_least=nominal)
    # Of a whole text under a posterior far from the prior, intervals are too narrow at such K (docs/conformance.md).
    known.check_coverage(planted, context, continuation, samples=128, trials=_TRIALS, at_least=nominal)
    known.check_shrinking_error(planted, context, continuation, samples=128, trials=8)


@check("likelihood")
def sampler_agrees(subject: Subject) -> None:
    """Frequencies of sampled continuations equal the sum over all latents (or the scores): own encoder and planted."""
    models = [subject.exact] if not subject.exact.has_latents else [_own(subject), _planted(subject)]
    for number, model in enumerate(models):
        for context in ([0, 1], [1, 1, 0]):
            few = model.has_latents and enumeration_limit(model, context, [0, 0]) is None and not _costly(model)
            samples = None if few else 256
            known.check_sampler_agreement(model, context, 2, draws=_DRAWS, samples=samples, seed=number)
    if models[-1].has_latents:
        for last in _last_latents(models[-1]):
            known.check_sampler_agreement(models[-1], [1, 1, 0], 2, draws=_DRAWS, samples=256, last_latent=last, seed=3)


@check("likelihood")
def unnormalised_refused(subject: Subject) -> None:
    """Where a prior is known up to a constant only, every score is refused with the reason."""
    model = subject.exact
    need(model.has_latents and not subject.normalised, "its priors are normalised")
    with torch.no_grad():
        context = model.context(Batch.of([[1, 2]]))
        latents = model.infer(context, noise(1))
        open_ended = [name for name in model.latents if not model.prior(context, name, latents).normalised]
    refused: dict[str, Callable[[], object]] = {
        f"score_continuations by {method}": partial(_score, model, method) for method in METHODS
    }
    refused["score_texts"] = partial(score_texts, model, [[0, 1, 1]])
    for what, call in refused.items():
        said = _refusal(call)
        assert said is not None, f"{what} prints a likelihood, though the prior of {', '.join(open_ended)} is not normalised"
        assert "normalised" in said, f"{what} refuses without the reason: {said}"
        assert any(name in said for name in open_ended), f"{what} refuses without naming the latent whose prior it is: {said}"
    batch = Batch.of([[1, 2, 0]])
    loss = model.loss(batch, step=0, noise=noise(1))
    for name in open_ended:
        assert not loss.latents[name].normalised, f"the loss does not say that the prior of {name} is not normalised"


def _refusal(call: Callable[[], object]) -> str | None:
    """What a call is refused with; None where it answers."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def _score(model: LatentDecoder, method: str) -> object:
    """One score."""
    return score_continuations(model, [([0, 1], [1, 1])], method=method)  # type: ignore[arg-type]
