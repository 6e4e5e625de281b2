"""Scores of continuations and of whole texts, given as token lists.

    scores = score_continuations(model, [(context, continuation), ...], samples=64)
    scores = score_texts(model, [tokens, ...])            # tokens begin with end-of-text

Randomness is keyed by (seed, key of the request, sample, site): batch size, order and padding do not change a score beyond
floating-point rounding. The key of a continuation is its context, so the options of one question draw the same uniform numbers;
the key of a text is the text.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch

from latentlm.config import checking, memory
from latentlm.config.checking import flag, function, real, several, whole
from latentlm.errors import UserError, unknown_name
from latentlm.interface import LatentDecoder
from latentlm.likelihood.estimating import DEFENSIVE, FIRST_SAMPLES, Progress, estimated
from latentlm.likelihood.paths import LastLatent, Target
from latentlm.likelihood.requests import How, Request
from latentlm.likelihood.results import Method, Score

TOLERANCE = 0.01
"""Nats of a continuation, bits per byte of a text."""
MAX_SAMPLES = 256
"""Where `samples="auto"` ends."""
_SAMPLE = 2**8  # bytes of a sample's random keys and weights, at least
_MOST_STEPS = 10**6  # of gradients: so many take hours for a sentence, and have long since gained what there is to gain
REFINE = 50
"""Gradient steps on the proposal of a document's vector that are worth their time for a text."""


@torch.no_grad()
def score_continuations(
    model: LatentDecoder,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    method: Method = "operational",
    samples: int | Literal["auto"] = 16,
    tolerance: float | Sequence[float] = TOLERANCE,
    max_samples: int = MAX_SAMPLES,
    seed: int = 0,
    batch_size: int | None = None,
    last_latent: LastLatent | Mapping[str, LastLatent] = "posterior",
    defensive: float = DEFENSIVE,
    refine: int = 0,
    greedy: bool = False,
    keys: Sequence[Hashable] | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """Log-likelihood of each continuation given its context, nats, in the order of the requests.

    method         see `METHODS`. `iwae`, `prior` and `elbo` condition on the context's tokens and take every latent, the
                   context's too, from the prior (what `generate(latents="prior")` samples); `joint` adds the context's own
                   likelihood.
    samples        K; "auto" doubles it, from 32, for each request until its score has converged or K would pass `max_samples`,
                   and with method "auto" goes over to `smc` for the requests whose weights are not settled (`Score.settled`).
                   Of `smc`, the particles, without what its islands leave over (`filtering.islands`). Ignored by a decoder
                   without latents, whose scores are exact
    tolerance      nats that a score is to be good to, one for all or one for each: what `Score.converged` is judged by
    batch_size     most requests per forward pass, those that differ in their last token alone counted as one; default: as many
                   as fit a fixed number of latent tokens. Fewer go together where the logits of one position of all their
                   samples would not fit a fixed memory
    last_latent    whose draw the site of the last context token is under `operational`, as in `prefill`
    defensive      share of paths drawn from the target instead of the posterior, 0 <= defensive < 1
    refine         gradient steps that move the proposal of a document's vector towards what explains the continuation
                   (`refining`); for an `operational` score that the encoder serves badly. With samples="auto" four times as
                   many follow, and new samples, where the last round leaves it unsettled and there is nothing to filter over
    greedy         also say whether every target is the argmax of the predictive mixture (of those samples that no posterior
                   proposed which has seen the targets; where all were, a second pass of the upper blocks draws others)
    keys           key of each request's random numbers; default: its context
    progress       called with the number of requests that are done and of all

    An empty context stands for none: the continuation is scored as a text after its own first token, by `iwae` where
    `operational` is asked for. Raises UserError for empty continuations, requests longer than the model's context (see
    `fit_to_context`), and settings out of range.
    """
    function("progress", progress)
    prepared, how = continuations_to_score(
        model,
        requests,
        method=method,
        samples=samples,
        tolerance=tolerance,
        max_samples=max_samples,
        seed=seed,
        batch_size=batch_size,
        last_latent=last_latent,
        defensive=defensive,
        refine=refine,
        greedy=greedy,
        keys=keys,
    )
    return estimated(model, prepared, how, progress)


@torch.no_grad()
def score_texts(
    model: LatentDecoder,
    texts: Sequence[Sequence[int]],
    *,
    method: Method = "auto",
    samples: int | Literal["auto"] = "auto",
    tolerance: float = TOLERANCE,
    max_samples: int = MAX_SAMPLES,
    seed: int = 0,
    batch_size: int | None = None,
    defensive: float = DEFENSIVE,
    refine: int | None = None,
    context: int | None = None,
    greedy: bool = False,
    keys: Sequence[Hashable] | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """Log-likelihood of each text after its first token, nats. Texts longer than `context` inputs (default: the model's) are
    cut into disjoint windows, each a text of its own after its one context token; nats and biases add up, errors in
    quadrature.

    Settings are those of `score_continuations`. `auto`, the default, is `iwae`, and with samples="auto" `smc` for the windows
    that it does not settle; `operational` and `joint` are `iwae` here. `tolerance` is in bits per byte of
    each window, as the tokenizer spells it; a model without a tokenizer counts a token as a byte. `refine` is 50 by default
    with samples="auto", else 0. Raises UserError for texts of fewer than two tokens."""
    function("progress", progress)
    prepared, owners, how = texts_to_score(
        model,
        texts,
        method=method,
        samples=samples,
        tolerance=tolerance,
        max_samples=max_samples,
        seed=seed,
        batch_size=batch_size,
        defensive=defensive,
        refine=refine,
        context=context,
        greedy=greedy,
        keys=keys,
    )
    scores = estimated(model, prepared, how, progress)
    totals: dict[int, Score] = {}
    for owner, score in zip(owners, scores, strict=True):
        totals[owner] = totals[owner].plus(score) if owner in totals else score
    return [totals[number] for number in range(len(texts))]


def continuations_to_score(
    model: LatentDecoder,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    method: Method = "operational",
    samples: int | Literal["auto"] = 16,
    tolerance: float | Sequence[float] = TOLERANCE,
    max_samples: int = MAX_SAMPLES,
    seed: int = 0,
    batch_size: int | None = None,
    last_latent: LastLatent | Mapping[str, LastLatent] = "posterior",
    defensive: float = DEFENSIVE,
    refine: int = 0,
    greedy: bool = False,
    keys: Sequence[Hashable] | None = None,
) -> tuple[list[Request], How]:
    """What `score_continuations` is going to score, and how."""
    checking.model(model)
    requests = several("requests", requests, of="pairs (context, continuation)")
    how = how_to_score(
        method=method,
        samples=samples,
        tolerance=tolerance,
        max_samples=max_samples,
        seed=seed,
        batch_size=batch_size,
        last_latent=last_latent,
        defensive=defensive,
        refine=refine,
        greedy=greedy,
    )
    wanted = _tolerances(tolerance, len(requests))
    if len(wanted) != len(requests):
        raise UserError(f"{len(wanted)} tolerances for {len(requests)} requests; give one, or one per request.")
    keys = None if keys is None else checking.keys(keys, len(requests), of="request")
    prepared = []
    for number, pair in enumerate(requests):
        if len(several(f"request {number}", pair, of="two, a context and a continuation, in tokens")) != 2:
            raise UserError(f"request {number} has {len(pair)} parts: give a context and a continuation, in tokens.")
        context, continuation = pair
        given, asked = token_ids(model, context), token_ids(model, continuation)
        key = tuple(given) if keys is None else keys[number]
        request = _request(given, asked, method, ("continuation", key), number, wanted[number])
        _check_length(model, request, number)
        prepared.append(request)
    return prepared, how


def texts_to_score(
    model: LatentDecoder,
    texts: Sequence[Sequence[int]],
    *,
    method: Method = "auto",
    samples: int | Literal["auto"] = "auto",
    tolerance: float = TOLERANCE,
    max_samples: int = MAX_SAMPLES,
    seed: int = 0,
    batch_size: int | None = None,
    defensive: float = DEFENSIVE,
    refine: int | None = None,
    context: int | None = None,
    greedy: bool = False,
    keys: Sequence[Hashable] | None = None,
) -> tuple[list[Request], list[int], How]:
    """What `score_texts` is going to score: windows, the number of each one's text, and how."""
    checking.model(model)
    steps = (REFINE if isinstance(samples, str) else 0) if refine is None else refine
    how = how_to_score(
        method=method,
        samples=samples,
        tolerance=tolerance,
        max_samples=max_samples,
        seed=seed,
        batch_size=batch_size,
        defensive=defensive,
        refine=steps,
        greedy=greedy,
    )
    how = replace(how, method="iwae") if method in ("operational", "joint") else how
    tolerance = real("tolerance", tolerance, above=0)  # one for all texts
    context = None if context is None else whole("context", context, least=1)
    texts = several("texts", texts, of="texts, each a list of tokens")
    limit = min(context or model.config.backbone.context, model.config.backbone.context)
    keys = None if keys is None else checking.keys(keys, len(texts), of="text")
    prepared, owners = [], []
    for number, text in enumerate(texts):
        if len(several(f"text {number}", text, of="tokens")) < 2:
            raise UserError(f"Text {number} has {len(text)} tokens; a score needs a context token and at least one more.")
        for place, window in enumerate(windows(token_ids(model, text), limit)):
            key: Hashable = tuple(window) if keys is None else keys[number]
            nats = tolerance * math.log(2) * _bytes(model, window)
            prepared.append(Request(window, 1, 1, "prior", ("text", key, place), nats))
            owners.append(number)
    return prepared, owners, how


def windows(tokens: Sequence[int], context: int) -> list[list[int]]:
    """Cut a text into disjoint windows of at most `context` targets; each begins with the token before its first target."""
    context = whole("context", context, least=1)
    return [list(tokens[start : start + context + 1]) for start in range(0, len(tokens) - 1, context)]


def fit_to_context(context: Sequence[int], continuation: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    """Cut the context from the left until context and continuation, its last token being no input, fit `limit` tokens (as
    lm-eval does). Raises UserError where the continuation alone does not fit."""
    limit = whole("limit", limit, least=1)
    if len(continuation) > limit:
        raise UserError(
            f"A continuation of {len(continuation)} tokens does not fit the model's context of {limit}. "
            "Score it in windows with score_texts, or shorten it."
        )
    room = limit + 1 - len(continuation)
    return list(context[-room:]), list(continuation)


def token_ids(model: LatentDecoder, tokens: Sequence[int]) -> list[int]:
    """Plain integers, from a list, an array or a tensor: keys of random numbers tell types apart. Raises UserError for what is
    no token of the model's: of a last target, which is no input, nothing else would notice."""
    plain = several("a text", tokens, of="tokens")
    found = [whole("a token", token.item() if isinstance(token, torch.Tensor) else token, least=None) for token in plain]
    vocabulary = model.config.backbone.vocabulary
    for token in found:
        if not 0 <= token < vocabulary:
            raise UserError(f"{token} is no token of this model, which has 0 to {vocabulary - 1}: is it another tokenizer's?")
    return found


def _bytes(model: LatentDecoder, window: list[int]) -> int:
    """Raw bytes of a window's targets, at least one."""
    if model.tokenizer is None:
        return len(window) - 1
    return max(1, len(model.tokenizer.decode_bytes(window[1:])))


def _request(
    context: list[int], continuation: list[int], method: Method, key: Hashable, number: int, tolerance: float
) -> Request:
    """What to score, under which target."""
    if not continuation:
        raise UserError(f"Request {number} has an empty continuation: there is nothing to score.")
    if not context:
        if len(continuation) < 2:
            raise UserError(f"Request {number} has no context and one token: put an end-of-text token in its context.")
        return Request(continuation, 1, 1, "prior", key, tolerance)
    given = 1 if method == "joint" else len(context)
    target: Target = "generation" if method in ("auto", "operational", "smc") else "prior"
    return Request(context + continuation, given, len(context), target, key, tolerance)


def how_to_score(
    *,
    method: Method = "operational",
    samples: int | Literal["auto"] = 16,
    tolerance: float | Sequence[float] = TOLERANCE,
    max_samples: int = MAX_SAMPLES,
    seed: int = 0,
    batch_size: int | None = None,
    last_latent: LastLatent | Mapping[str, LastLatent] = "posterior",
    defensive: float = DEFENSIVE,
    refine: int = 0,
    greedy: bool = False,
) -> How:
    """The settings of a call. Raises UserError where one means nothing: to be asked before any long work."""
    if not isinstance(method, str) or method not in get_args(Method):
        raise unknown_name("scoring method", str(method), get_args(Method))
    for given in last_latent.values() if isinstance(last_latent, Mapping) else [last_latent]:
        if not isinstance(given, str) or given not in get_args(LastLatent):
            raise unknown_name("last_latent", str(given), get_args(LastLatent))
    if isinstance(samples, str) and samples != "auto":
        raise UserError(f'samples="{samples}" is neither a number nor "auto".')
    if not isinstance(samples, str):
        samples = whole("samples", samples, least=1)
    max_samples = whole("max_samples", max_samples, least=1)
    if samples == "auto" and max_samples < FIRST_SAMPLES:
        raise UserError(f'max_samples={max_samples}: samples="auto" begins with {FIRST_SAMPLES}.')
    defensive = real("defensive", defensive)
    if not 0 <= defensive < 1:
        raise UserError(f"defensive={defensive} is not a share of paths: choose 0 <= defensive < 1.")
    name, most = ("max_samples", max_samples) if samples == "auto" else ("samples", samples)
    memory.check_count(name, most, each=_SAMPLE)
    refine, seed = whole("refine", refine, most=_MOST_STEPS), whole("seed", seed, least=None)
    _tolerances(tolerance, 1)
    if batch_size is not None:
        batch_size = whole("batch_size", batch_size, least=1)
    flag("greedy", greedy)
    first = FIRST_SAMPLES if samples == "auto" else samples
    return How(
        method=method,
        samples=first,
        max_samples=max_samples if samples == "auto" else first,
        doubles=samples == "auto",
        seed=seed,
        batch_size=batch_size,
        last_latent=last_latent,
        defensive=defensive,
        greedy=greedy,
        refine=refine,
    )


def _tolerances(given: float | Sequence[float], count: int) -> list[float]:
    """Those of a sequence, or the one that is for all `count`. Raises UserError."""
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return [real("tolerance", each, above=0) for each in given]
    return [real("tolerance", given, above=0)] * count


def _check_length(model: LatentDecoder, request: Request, number: int) -> None:
    """Inputs must fit the model's context."""
    limit = model.config.backbone.context
    if len(request.tokens) - 1 > limit:
        raise UserError(
            f"Request {number} has {len(request.tokens) - 1} input tokens, but the model's context is {limit}. "
            "Cut it with fit_to_context, which keeps the continuation and the end of the context."
        )
