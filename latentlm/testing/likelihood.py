"""Checks that a decoder and the estimators agree on what a probability is. Run them on a planted decoder (`plant`) with a
vocabulary of at most four and two bits per site, where every answer is known.

    1 normalisation        exp(score) of all continuations sums to 1; `leak_sum` shows what a dishonest score sums to
    2 exactness            scores equal sums over all latents within their error bars
    4 no latents           every method gives the same number
    5 keyed randomness     batch size, order and padding change nothing
    6 standard error       covers the truth 95% of the time, and shrinks like 1/sqrt(K)
    7 sampler agreement    frequencies of sampled continuations equal exp(operational)

Legend: B rows, V vocabulary, K samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch

from latentlm.interface import LatentDecoder, Noise
from latentlm.likelihood import METHODS, Method, Score, score_continuations
from latentlm.likelihood.estimating import DEFENSIVE
from latentlm.likelihood.nats import path_likelihood
from latentlm.likelihood.quantiles import t_quantile
from latentlm.likelihood.texts import Texts
from latentlm.testing.exact import exact_elbo, exact_log_likelihood

Tokens = Sequence[int]
LastLatent = Literal["posterior", "prior"]
Last = LastLatent | Mapping[str, LastLatent]
"""Whose draw the site at the last context token is: for all latents, or by name."""

_EXACT = 2e-5
"""Nats that rounding costs: a score without an error of its own (a point mass) is held to this."""


@dataclass(frozen=True)
class Sum:
    """A sum of estimated probabilities and its standard error."""

    total: float
    standard_error: float


def continuations(model: LatentDecoder, length: int) -> list[tuple[int, ...]]:
    """Every continuation of `length` tokens."""
    count = model.config.backbone.vocabulary**length
    assert count <= 4096, f"{count} continuations are too many: use a vocabulary of at most 4"
    return list(product(range(model.config.backbone.vocabulary), repeat=length))


def probability_sum(
    model: LatentDecoder,
    context: Tokens,
    length: int,
    *,
    method: Method = "operational",
    samples: int = 64,
    last_latent: Last = "posterior",
    defensive: float = DEFENSIVE,
) -> Sum:
    """Sum of exp(score) over all continuations; each draws numbers of its own, so that errors add in quadrature."""
    options = continuations(model, length)
    scores = score_continuations(
        model,
        [(context, option) for option in options],
        method=method,
        samples=samples,
        last_latent=last_latent,
        defensive=defensive,
        keys=list(options),
    )
    return _sum(scores)


@torch.no_grad()
def leak_sum(model: LatentDecoder, context: Tokens, length: int, *, samples: int = 64) -> float:
    """What the naive adapter's probabilities sum to: it encodes context and continuation, then reads off p(y | c, z)."""
    options = continuations(model, length)
    texts = Texts.of(model, [[*context, *option] for option in options], [len(context)] * len(options))
    rows = torch.arange(len(options)).repeat_interleave(samples)
    latents = model.infer(texts.context.select(rows), Noise.keyed(0, options, samples=samples))
    nats, _ = path_likelihood(model, texts, latents, greedy=False)
    return float(nats.exp().mean(-1).sum())


def check_normalisation(
    model: LatentDecoder,
    context: Tokens,
    length: int,
    *,
    method: Method = "operational",
    samples: int = 64,
    last_latent: Last = "posterior",
    power: float = 0.1,
) -> Sum:
    """The sum is 1 within 4 standard errors, and those are at most `power`; `elbo` may sum to less, never to more."""
    found = probability_sum(model, context, length, method=method, samples=samples, last_latent=last_latent)
    allowed = 4 * found.standard_error + 1e-4
    assert found.standard_error <= power, f"standard error {found.standard_error:.3f} of the sum: too blunt, use more samples"
    assert found.total <= 1 + allowed, f"{method}: probabilities sum to {found.total:.4f}, allowed 1 + {allowed:.4f}"
    if method != "elbo":
        assert found.total >= 1 - allowed, f"{method}: probabilities sum to {found.total:.4f}, allowed 1 - {allowed:.4f}"
    return found


def check_exactness(
    model: LatentDecoder,
    requests: Sequence[tuple[Tokens, Tokens]],
    *,
    method: Method = "operational",
    samples: int = 512,
    last_latent: Last = "posterior",
    power: float = 0.2,
    seed: int = 0,
) -> float:
    """Each score is within 4.5 standard errors of the sum over all latents. Returns the largest deviation in those."""
    worst = 0.0
    samples *= 4 if method == "smc" else 1  # nothing is proposed, and the error is not known so well
    scores = score_continuations(
        model, requests, method=method, samples=samples, last_latent=last_latent, seed=seed, keys=list(range(len(requests)))
    )
    for (context, continuation), score in zip(requests, scores, strict=True):
        truth = _truth(model, context, continuation, method, last_latent)
        assert score.standard_error <= power, f"{method}: standard error {score.standard_error:.3f} nats is too blunt"
        deviation = abs(score.value - truth) / (blunted(score) + _EXACT)
        assert deviation <= 4.5, (
            f"{method} of {list(continuation)} after {list(context)}: {score.value:.4f} +- {score.standard_error:.4f}, "
            f"exactly {truth:.4f}"
        )
        worst = max(worst, deviation)
    return worst


def blunted(score: Score) -> float:
    """The standard error; that of a particle filter's islands, which are few, larger, so that as many of them as of a
    Gaussian's miss the truth as seldom. (Student's tails, roughly: of seven degrees of freedom, 4.5 errors are passed once in
    360 times.)"""
    if score.method != "smc":
        return score.standard_error
    return score.standard_error * (t_quantile(score.freedom) / t_quantile(math.inf)) ** 2


def check_no_latents_no_noise(model: LatentDecoder, requests: Sequence[tuple[Tokens, Tokens]]) -> None:
    """A decoder without latents gives one number by every method (`joint` has the context's nats on top), with error 0."""
    assert not model.has_latents
    reference = score_continuations(model, requests, method="operational", samples=4)
    for method in METHODS:
        for one, other in zip(reference, score_continuations(model, requests, method=method, samples=7), strict=True):  # type: ignore[arg-type]
            assert other.standard_error == 0, f"{method}: an exact score has standard error {other.standard_error}"
            assert other.samples == 0
            if method != "joint":
                assert abs(one.value - other.value) < 1e-5, f"{method} differs by {other.value - one.value}"


def check_keyed_randomness(
    model: LatentDecoder,
    requests: Sequence[tuple[Tokens, Tokens]],
    *,
    method: Method = "operational",
    samples: int | Literal["auto"] = 8,
    tolerance: float = 1e-4,
) -> int:
    """Scores alone, in twos, all at once, reversed, and beside a longer text are equal, but where a bit lies within rounding of
    its threshold. The last context has further options, which share what it alone decides. Returns the number of such
    requests."""
    context, continuation = requests[-1]
    last = [(continuation[-1] + 1) % model.config.backbone.vocabulary]
    more = ([*continuation[:-1], *last], continuation[:1], last, [*continuation, 0, 1])
    requests = [*requests, *((context, option) for option in more)]

    def scores(asked: Sequence[tuple[Tokens, Tokens]], batch_size: int) -> list[Score]:
        return score_continuations(
            model, asked, method=method, samples=samples, batch_size=batch_size, tolerance=1e-6, max_samples=64
        )

    alone = [score for request in requests for score in scores([request], 1)]
    room = model.config.backbone.context
    beside = ([0] * (room - 1), [0, 0])
    others = {
        "in twos": scores(requests, 2),
        "all at once": scores(requests, len(requests)),
        "reversed": scores(list(reversed(requests)), 3)[::-1],
        "beside a longer text": scores([beside, *requests], len(requests) + 1)[1:],
    }
    for name, found in others.items():
        for number, (one, other) in enumerate(zip(alone, found, strict=True)):
            difference = abs(one.value - other.value)
            excused = one.near_ties + other.near_ties > 0
            assert difference < tolerance or excused, f"{method}, request {number} {name}: differs by {difference:.2e} nats"
    return sum(score.near_ties > 0 for score in alone)


def check_coverage(
    model: LatentDecoder,
    context: Tokens,
    continuation: Tokens,
    *,
    method: Method = "operational",
    samples: int = 64,
    trials: int = 400,
    at_least: float = 0.92,
) -> float:
    """A score's interval covers the truth 95% of the time (within sampling error); the exact value without an error covers it.
    Returns the share."""
    truth = _truth(model, context, continuation, method, "posterior")
    scores = score_continuations(
        model, [(context, continuation)] * trials, method=method, samples=samples, keys=list(range(trials))
    )
    share = sum(low - _EXACT <= truth <= high + _EXACT for low, high in (score.interval for score in scores)) / trials
    assert share >= at_least, f"{method}: intervals of 95% cover the truth {share:.1%} of the time"
    return share


def check_shrinking_error(
    model: LatentDecoder,
    context: Tokens,
    continuation: Tokens,
    *,
    method: Method = "operational",
    samples: int = 64,
    trials: int = 50,
) -> float:
    """Sixteen times the samples, a quarter of the standard error. Returns the ratio found, NaN where there is no error."""
    means = []
    for count in (samples, 16 * samples):
        requests = [(context, continuation)] * trials
        scores = score_continuations(model, requests, method=method, samples=count, keys=list(range(trials)))
        means.append(sum(score.standard_error for score in scores) / trials)
    if max(means) <= _EXACT:
        return math.nan
    ratio = means[0] / max(means[1], 1e-12)
    assert 3 < ratio < 5.5, f"{method}: 16 times the samples divide the standard error by {ratio:.2f}, not 4"
    return ratio


@torch.no_grad()
def check_sampler_agreement(
    model: LatentDecoder,
    context: Tokens,
    length: int,
    *,
    draws: int = 8000,
    samples: int | None = 1024,
    last_latent: Last = "posterior",
    seed: int = 0,
) -> float:
    """Frequencies of continuations sampled by prefill and step equal exp(operational), or, with `samples` None, the sum over
    all latents. Returns chi-squared per continuation."""
    options = continuations(model, length)
    counts = Counter(_sampled(model, context, length, draws, last_latent, seed))
    if samples is None:
        truths = [_truth(model, context, option, "operational", last_latent) for option in options]
        expected = [(truth, 0.0) for truth in truths]
    else:
        requests = [(context, option) for option in options]
        scores = score_continuations(model, requests, samples=samples, last_latent=last_latent, keys=list(options))
        expected = [(score.value, score.standard_error) for score in scores]
    total = 0.0
    for option, (value, error) in zip(options, expected, strict=True):
        chance = math.exp(value)
        variance = chance * (1 - chance) / draws + (chance * error) ** 2
        deviation = (counts[option] / draws - chance) / math.sqrt(variance + 1e-12)
        shares = f"sampled {counts[option] / draws:.4f}, scored {chance:.4f}"
        assert abs(deviation) < 5, f"{option}: {shares} ({deviation:.1f} standard errors)"
        total += deviation**2
    ratio = total / len(options)
    assert ratio < 1 + 5 * math.sqrt(2 / len(options)), f"chi-squared per continuation is {ratio:.2f}"
    return ratio


def _sampled(
    model: LatentDecoder, context: Tokens, length: int, draws: int, last_latent: Last, seed: int
) -> list[tuple[int, ...]]:
    """`draws` continuations at temperature 1, by prefill and step."""
    noise = Noise.keyed(seed, range(draws))
    tokens = torch.tensor(list(context)).expand(draws, -1).contiguous()
    lengths = torch.full((draws,), len(context))
    state = model.prefill(tokens, lengths, latents="posterior", noise=noise, last_latent=last_latent)
    written = []
    for place in range(length):
        uniform = noise.stream("tokens").at([place]).uniform(1, 1)[:, 0]  # (B, 1)
        choice = (state.logits.double().softmax(-1).cumsum(-1) < uniform).sum(-1)
        choice = choice.clamp(max=state.logits.shape[-1] - 1)
        written.append(choice)
        if place + 1 < length:
            state = model.step(state, choice, noise=noise)
    return [tuple(row) for row in torch.stack(written, dim=1).tolist()]


def _truth(
    model: LatentDecoder, context: Tokens, continuation: Tokens, method: Method, last_latent: Last
) -> float:
    """The number that a method estimates, by enumeration."""
    if method == "elbo":
        return exact_elbo(model, context, continuation)
    if method == "joint":
        return exact_log_likelihood(model, context[:1], [*context[1:], *continuation], target="prior")
    target: Literal["generation", "prior"] = "generation" if method in ("auto", "operational", "smc") else "prior"
    return exact_log_likelihood(model, context, continuation, target=target, last_latent=last_latent)


def _sum(scores: Sequence[Score]) -> Sum:
    """Sum of exp(score), errors in quadrature."""
    chances = [math.exp(score.value) for score in scores]
    errors = [chance * score.standard_error for chance, score in zip(chances, scores, strict=True)]
    return Sum(sum(chances), math.sqrt(sum(error**2 for error in errors)))
