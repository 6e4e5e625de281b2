"""Scores of continuations and of whole texts, given as token lists.

    scores = score_continuations(model, [(context, continuation), ...], samples=64)
    scores = score_texts(model, [tokens, ...])            # tokens begin with end-of-text

Randomness is keyed by (seed, key of the request, sample, site): batch size, order and padding do not change a score beyond
floating-point rounding. The key of a continuation is its context, so the options of one question draw the same uniform numbers;
the key of a text is the text.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import get_args

import torch

from latentlm.errors import UserError, unknown_name
from latentlm.interface import LatentDecoder, Noise
from latentlm.likelihood.paths import LastLatent, Target, check_normalised
from latentlm.likelihood.results import Method, Score, make_scores
from latentlm.likelihood.weights import Texts, Weights, bound_samples, fitting_rows, log_weights

DEFENSIVE = 0.1
"""Share of paths drawn from the target itself. The ratio of target to proposal is then at most ten, at the price of a tenth of
the samples."""


@dataclass(frozen=True)
class _Request:
    """A text, its given tokens, and where its continuation begins (the two differ for `joint`)."""

    tokens: list[int]
    given: int
    begins: int
    target: Target
    key: Hashable


@torch.no_grad()
def score_continuations(
    model: LatentDecoder,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    method: Method = "operational",
    samples: int = 16,
    seed: int = 0,
    batch_size: int | None = None,
    last_latent: LastLatent | Mapping[str, LastLatent] = "posterior",
    defensive: float = DEFENSIVE,
    greedy: bool = False,
    keys: Sequence[Hashable] | None = None,
) -> list[Score]:
    """Log-likelihood of each continuation given its context, nats, in the order of the requests.

    method         see `METHODS`. `iwae`, `prior` and `elbo` condition on the context's tokens and take every latent, the
                   context's too, from the prior (what `generate(latents="prior")` samples); `joint` adds the context's own
                   likelihood.
    samples        K; ignored by a decoder without latents, whose scores are exact
    batch_size     most requests per forward pass; default: as many as fit a fixed number of latent tokens. Fewer go together
                   where the logits of one position of all their samples would not fit a fixed memory
    last_latent    whose draw the site of the last context token is under `operational`, as in `prefill`
    defensive      share of paths drawn from the target instead of the posterior, 0 <= defensive < 1
    greedy         also say whether every target is the argmax of the predictive mixture (a second pass of the upper blocks)
    keys           key of each request's random numbers; default: its context

    An empty context stands for none: the continuation is scored as a text after its own first token, by `iwae` where
    `operational` is asked for. Raises UserError for empty continuations, requests longer than the model's context (see
    `fit_to_context`), and settings out of range.
    """
    _check(method, samples, defensive, last_latent)
    if keys is not None and len(keys) != len(requests):
        raise UserError(f"{len(keys)} keys for {len(requests)} requests; give one key per request.")
    prepared = []
    for number, (context, continuation) in enumerate(requests):
        given, asked = _integers(context), _integers(continuation)
        key = tuple(given) if keys is None else keys[number]
        request = _request(given, asked, method, ("continuation", key), number)
        _check_length(model, request, number)
        prepared.append(request)
    return _score(model, prepared, method, samples, seed, batch_size, last_latent, defensive, greedy)


@torch.no_grad()
def score_texts(
    model: LatentDecoder,
    texts: Sequence[Sequence[int]],
    *,
    method: Method = "iwae",
    samples: int = 16,
    seed: int = 0,
    batch_size: int | None = None,
    defensive: float = DEFENSIVE,
    context: int | None = None,
    greedy: bool = False,
    keys: Sequence[Hashable] | None = None,
) -> list[Score]:
    """Log-likelihood of each text after its first token, nats. Texts longer than `context` inputs (default: the model's) are
    cut into disjoint windows, each a text of its own after its one context token; nats add up, errors in quadrature.

    `operational` and `joint` are `iwae` here. Raises UserError for texts of fewer than two tokens.
    """
    _check(method, samples, defensive, "posterior")
    method = "iwae" if method in ("operational", "joint") else method
    limit = min(context or model.config.backbone.context, model.config.backbone.context)
    if keys is not None and len(keys) != len(texts):
        raise UserError(f"{len(keys)} keys for {len(texts)} texts; give one key per text.")
    prepared, owners = [], []
    for number, text in enumerate(texts):
        if len(text) < 2:
            raise UserError(f"Text {number} has {len(text)} tokens; a score needs a context token and at least one more.")
        for place, window in enumerate(windows(_integers(text), limit)):
            key: Hashable = tuple(window) if keys is None else keys[number]
            prepared.append(_Request(window, 1, 1, "prior", ("text", key, place)))
            owners.append(number)
    scores = _score(model, prepared, method, samples, seed, batch_size, "posterior", defensive, greedy)
    totals: dict[int, Score] = {}
    for owner, score in zip(owners, scores, strict=True):
        totals[owner] = totals[owner].plus(score) if owner in totals else score
    return [totals[number] for number in range(len(texts))]


def windows(tokens: Sequence[int], context: int) -> list[list[int]]:
    """Cut a text into disjoint windows of at most `context` targets; each begins with the token before its first target."""
    return [list(tokens[start : start + context + 1]) for start in range(0, len(tokens) - 1, context)]


def fit_to_context(context: Sequence[int], continuation: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    """Cut the context from the left until context and continuation, its last token being no input, fit `limit` tokens (as
    lm-eval does). Raises UserError where the continuation alone does not fit."""
    if len(continuation) > limit:
        raise UserError(
            f"A continuation of {len(continuation)} tokens does not fit the model's context of {limit}. "
            "Score it in windows with score_texts, or shorten it."
        )
    room = limit + 1 - len(continuation)
    return list(context[-room:]), list(continuation)


def _integers(tokens: Sequence[int]) -> list[int]:
    """Plain integers, from a list, an array or a tensor: keys of random numbers tell types apart."""
    return [int(token) for token in tokens]


def _request(context: list[int], continuation: list[int], method: Method, key: Hashable, number: int) -> _Request:
    """What to score, under which target."""
    if not continuation:
        raise UserError(f"Request {number} has an empty continuation: there is nothing to score.")
    if not context:
        if len(continuation) < 2:
            raise UserError(f"Request {number} has no context and one token: put an end-of-text token in its context.")
        return _Request(continuation, 1, 1, "prior", key)
    given = 1 if method == "joint" else len(context)
    target: Target = "generation" if method == "operational" else "prior"
    return _Request(context + continuation, given, len(context), target, key)


def _check(method: str, samples: int, defensive: float, last_latent: str | Mapping[str, str]) -> None:
    """Refuse settings that mean nothing."""
    if method not in get_args(Method):
        raise unknown_name("scoring method", method, get_args(Method))
    for given in [last_latent] if isinstance(last_latent, str) else last_latent.values():
        if given not in get_args(LastLatent):
            raise unknown_name("last_latent", given, get_args(LastLatent))
    if samples < 1:
        raise UserError(f"samples={samples}: a score needs at least 1 sample, and a standard error at least 2.")
    if not 0 <= defensive < 1:
        raise UserError(f"defensive={defensive} is not a share of paths: choose 0 <= defensive < 1.")


def _check_length(model: LatentDecoder, request: _Request, number: int) -> None:
    """Inputs must fit the model's context."""
    limit = model.config.backbone.context
    if len(request.tokens) - 1 > limit:
        raise UserError(
            f"Request {number} has {len(request.tokens) - 1} input tokens, but the model's context is {limit}. "
            "Cut it with fit_to_context, which keeps the continuation and the end of the context."
        )


def _score(
    model: LatentDecoder,
    requests: list[_Request],
    method: Method,
    samples: int,
    seed: int,
    batch_size: int | None,
    last_latent: LastLatent | Mapping[str, LastLatent],
    defensive: float,
    greedy: bool,
) -> list[Score]:
    """Score in batches of like length and one target, and put the scores back in order."""
    count = samples if model.has_latents else 1
    order = sorted(range(len(requests)), key=lambda i: (requests[i].target, -len(requests[i].tokens)))
    scores: dict[int, Score] = {}
    with _evaluating(model):
        for numbers in _batches(model, order, requests, batch_size, count):
            batch = [requests[number] for number in numbers]
            texts = Texts.of(model, [request.tokens for request in batch], [request.given for request in batch])
            if not scores:
                check_normalised(model, texts.context)
            noise = Noise.keyed(seed, [request.key for request in batch], samples=count)
            if method == "elbo":
                found = bound_samples(model, texts, noise)
            else:
                found = log_weights(
                    model,
                    texts,
                    noise,
                    target=batch[0].target,
                    proposal="target" if method == "prior" else "posterior",
                    defensive=defensive,
                    last_latent=last_latent,
                    greedy=greedy,
                )
            if greedy and found.greedy is None:
                unseeing = log_weights(model, texts, noise, target="prior", proposal="target", greedy=True)
                found = replace(found, greedy=unseeing.greedy)
            made = make_scores(
                found.log_weights.cpu(),
                method=method,
                exact=not model.has_latents,
                tokens=[len(request.tokens) - request.given for request in batch],
                greedy=_all_greedy(found, batch),
                near_ties=found.near_ties.tolist(),
                proposal=_proposal(found.proposals),
            )
            scores.update(zip(numbers, made, strict=True))
    return [scores[number] for number in range(len(requests))]


def _proposal(by_latent: Mapping[str, str]) -> str:
    """What latents were drawn from, in a word where it is the same for all."""
    kinds = set(by_latent.values())
    return next(iter(kinds)) if len(kinds) == 1 else ", ".join(f"{name}: {kind}" for name, kind in by_latent.items())


def _all_greedy(found: Weights, batch: list[_Request]) -> list[bool] | None:
    """Whether every token of each continuation is greedy."""
    if found.greedy is None:
        return None
    return [bool(found.greedy[row, request.begins - request.given :].all()) for row, request in enumerate(batch)]


def _batches(
    model: LatentDecoder, order: list[int], requests: list[_Request], batch_size: int | None, samples: int
) -> Iterator[list[int]]:
    """Consecutive requests of one target, at most `batch_size`, and no more than fit the memory set aside (`fitting_rows`)."""
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size={batch_size}: a batch holds at least one request.")
    batch: list[int] = []
    for number in order:
        # Requests come longest first within a target, so the first of a batch sets its width.
        first = requests[batch[0]] if batch else requests[number]
        most = fitting_rows(model, samples=samples, tokens=None if batch_size else len(first.tokens))
        most = min(most, batch_size or most)
        if batch and (len(batch) >= most or requests[number].target != first.target):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


@contextmanager
def _evaluating(model: LatentDecoder) -> Iterator[None]:
    """Evaluation mode, and back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
