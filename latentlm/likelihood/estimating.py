"""Requests in, scores out: in batches of like length, and in rounds, each of twice the samples of the one before, for the
scores that have not converged.

A round of importance sampling adds samples to those that are there; a round of `smc` is a new filter. What a request draws
depends on its key and the number of the sample alone, so a request that is scored in rounds has the score that it would have
alone. """

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentlm.errors import UserError
from latentlm.interface import Distribution, LatentDecoder, Noise
from latentlm.likelihood.filtering import filtered, open_latents
from latentlm.likelihood.paths import LastLatent, Target, check_normalised
from latentlm.likelihood.refining import refined
from latentlm.likelihood.results import Method, Score, cautions, effective_samples, estimate, exact_score, log_mean_exp
from latentlm.likelihood.weights import Texts, Weights, bound_samples, fitting_rows, log_weights

DEFENSIVE = 0.5
"""Share of paths drawn from the target itself."""
FIRST_SAMPLES = 32
"""Of the first round."""
Progress = Callable[[int, int], None]
"""Called with the requests that are done and all of them."""


@dataclass(frozen=True)
class Request:
    """A text, its given tokens, and where its continuation begins (the two differ for `joint`)."""

    tokens: list[int]
    given: int
    begins: int
    target: Target
    key: Hashable
    tolerance: float
    """Nats."""


@dataclass(frozen=True)
class How:
    """Settings of a call."""

    method: Method
    samples: int
    """Of the first round."""
    max_samples: int
    """Rounds double the samples while they stay within these."""
    seed: int
    batch_size: int | None
    last_latent: LastLatent | Mapping[str, LastLatent]
    defensive: float
    greedy: bool
    refine: int
    """Gradient steps on the proposal of a document's vector (`refining`)."""


def estimated(model: LatentDecoder, requests: list[Request], how: How, progress: Progress | None = None) -> list[Score]:
    """A score for each request, in their order."""
    run = _Run(model, requests, how)
    pending, samples, had = list(range(len(requests))), how.samples, 0
    with _evaluating(model):
        if requests:
            check_normalised(model, Texts.of(model, [requests[0].tokens], [requests[0].given]).context)
        while pending:
            for batch in run.batches(pending, samples - had):
                run.add(batch, samples, had)
                if progress is not None:
                    progress(sum(run.done(number, 2 * samples) for number in run.scores), len(requests))
            had, samples = samples, 2 * samples
            pending = [number for number in pending if not run.done(number, samples)]
    return [run.scores[number] for number in range(len(requests))]


class _Run:
    """A call under way."""

    def __init__(self, model: LatentDecoder, requests: list[Request], how: How) -> None:
        self.model, self.requests, self.how = model, requests, how
        self.scores: dict[int, Score] = {}
        self.weights: dict[int, Weights] = {}
        self.filters: dict[tuple[int, int], float] = {}  # by request and particles
        self.fitted: dict[int, list[Tensor]] = {}  # parameters of refined proposals, by request
        self.kinds = [(request.target, self._open(request)) for request in requests]

    def _open(self, request: Request) -> tuple[str, ...]:
        """The latents that are drawn once for all targets, where it matters to the method which these are."""
        matters = self.how.method == "smc" or self.how.refine
        return open_latents(self.model, request.tokens, request.given) if matters else ()

    def done(self, number: int, samples: int) -> bool:
        """Whether a score has converged, or the next round's samples would be too many."""
        return self.scores[number].converged or samples > self.how.max_samples

    def batches(self, numbers: list[int], samples: int) -> Iterator[list[int]]:
        """Requests that are treated alike, longest first, at most `batch_size`, and no more than fit the memory set aside
        (`fitting_rows`)."""
        requests, most_asked = self.requests, self.how.batch_size
        samples = samples if self.model.has_latents else 1
        batch: list[int] = []
        for number in sorted(numbers, key=lambda i: (self.kinds[i], -len(requests[i].tokens))):
            first = requests[batch[0]] if batch else requests[number]
            most = fitting_rows(self.model, samples=samples, tokens=None if most_asked else len(first.tokens))
            most = min(most, most_asked or most)
            if batch and (len(batch) >= most or self.kinds[number] != self.kinds[batch[0]]):
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def add(self, numbers: list[int], samples: int, had: int) -> None:
        """Bring some requests from `had` to `samples` samples. Raises UserError where one is not a number."""
        if not self.model.has_latents:
            self._exact(numbers)
        elif self.how.method == "smc":
            self._filter(numbers, samples)
        else:
            self._weigh(numbers, samples, had)
        if any(math.isnan(self.scores[number].value) for number in numbers):
            raise UserError("A log-likelihood is not a number: the logits are not finite; weights or precision are broken.")

    def _texts(self, numbers: list[int]) -> Texts:
        batch = [self.requests[number] for number in numbers]
        return Texts.of(self.model, [request.tokens for request in batch], [request.given for request in batch])

    def _exact(self, numbers: list[int]) -> None:
        found = log_weights(
            self.model, self._texts(numbers), Noise([]), target="prior", proposal="target", greedy=self.how.greedy
        )
        for row, number in enumerate(numbers):
            request = self.requests[number]
            self.scores[number] = exact_score(
                float(found.nats[row, 0]),
                tokens=len(request.tokens) - request.given,
                method=self.how.method,
                tolerance=request.tolerance,
                greedy=self._greedy(found.greedy, row, request),
            )

    def _weigh(self, numbers: list[int], samples: int, had: int) -> None:
        """By importance sampling, or the bound."""
        model, how, texts = self.model, self.how, self._texts(numbers)
        batch = [self.requests[number] for number in numbers]
        noise = Noise.keyed(how.seed, [request.key for request in batch], samples=samples - had, first=had)
        greedy = how.greedy and not had  # the first round's draws are as good as any
        if how.method == "elbo":
            found = replace(bound_samples(model, texts, noise), first=had)
        else:
            found = log_weights(
                model,
                texts,
                noise,
                target=batch[0].target,
                proposal="target" if how.method == "prior" else "posterior",
                defensive=how.defensive,
                first=had,
                last_latent=how.last_latent,
                greedy=greedy,
                refined=self._refined(numbers, texts),
            )
        if greedy and found.greedy is None:
            unseeing = log_weights(model, texts, noise, target="prior", proposal="target", greedy=True)
            found = replace(found, greedy=unseeing.greedy)
        for row, (number, request) in enumerate(zip(numbers, batch, strict=True)):
            own = found.row(row)
            self.weights[number] = own if number not in self.weights else self.weights[number].plus(own)
            whole = self.weights[number]
            value, error, effective, quarter = estimate(whole.log_weights, whole.quarters(), whole.strata(), method=how.method)
            self.scores[number] = Score(
                value=value,
                standard_error=error,
                effective_samples=effective,
                freedom=max(1.0, effective - 1),
                samples=whole.count,
                tokens=len(request.tokens) - request.given,
                method=how.method,
                quarter=quarter,
                tolerance=request.tolerance,
                greedy=self._greedy(whole.greedy, 0, request),
                near_ties=int(whole.near_ties),
                proposal=_proposal(whole.proposals),
                warnings=cautions(effective, whole.count),
            )

    def _filter(self, numbers: list[int], samples: int) -> None:
        """By filters of K and, unless a round before had it, K/4 particles."""
        batch = [self.requests[number] for number in numbers]
        for count in (samples // 4, samples):
            if count == 0 or all((number, count) in self.filters for number in numbers):
                continue
            found = filtered(
                self.model,
                [request.tokens for request in batch],
                [request.given for request in batch],
                Noise.keyed(self.how.seed, [(request.key, "smc", count) for request in batch], samples=count),
                target=batch[0].target,
                proposed=self.kinds[numbers[0]][1],
                defensive=self.how.defensive,
                last_latent=self.how.last_latent,
                refined=self._refined(numbers, None),
            )
            self.filters.update(zip([(number, count) for number in numbers], found.value.tolist(), strict=True))
        values, errors = log_mean_exp(found.roots.cpu())
        effective = effective_samples(found.roots.cpu())
        for row, (number, request) in enumerate(zip(numbers, batch, strict=True)):
            self.scores[number] = Score(
                value=float(values[row]),
                standard_error=float(errors[row]),
                effective_samples=float(effective[row]),
                freedom=max(1.0, float(effective[row]) - 1),
                samples=samples,
                tokens=len(request.tokens) - request.given,
                method=self.how.method,
                quarter=self.filters.get((number, samples // 4), math.nan),
                tolerance=request.tolerance,
                greedy=self._greedy(found.greedy if self.how.greedy else None, row, request),
                near_ties=int(found.near_ties[row]),
                proposal=_proposal(found.proposals),
                warnings=cautions(float(effective[row]), samples),
            )

    def _refined(self, numbers: list[int], texts: Texts | None) -> dict[str, Distribution]:
        """Refined proposals of the first latent, where one site of it is open over all targets; made once for each request."""
        opened, how = self.kinds[numbers[0]][1], self.how
        if not (how.refine and opened) or how.method == "prior":
            return {}
        texts = texts or self._texts(numbers)
        start = self.model.posterior(texts.context, opened[0]) if all(number in self.fitted for number in numbers) else None
        if start is not None:
            known = iter([torch.stack(rows) for rows in zip(*(self.fitted[number] for number in numbers), strict=True)])
            return {opened[0]: start.mapped(lambda _: next(known))}
        noise = Noise.keyed(how.seed, [(self.requests[number].key, "refining") for number in numbers])
        found = refined(
            self.model, texts, noise, target=self.kinds[numbers[0]][0], last_latent=how.last_latent, steps=how.refine
        )
        if found is None:
            return {}
        parameters: list[Tensor] = []
        found.mapped(lambda parameter: parameters.append(parameter) or parameter)  # type: ignore[func-returns-value]
        self.fitted.update({number: [one[row] for one in parameters] for row, number in enumerate(numbers)})
        return {opened[0]: found}

    @staticmethod
    def _greedy(found: torch.Tensor | None, row: int, request: Request) -> bool | None:
        """Whether every token of a continuation is greedy."""
        return None if found is None else bool(found[row, request.begins - request.given :].all())


def _proposal(by_latent: Mapping[str, str]) -> str:
    """What latents were drawn from, in a word where it is the same for all."""
    kinds = set(by_latent.values())
    return next(iter(kinds)) if len(kinds) == 1 else ", ".join(f"{name}: {kind}" for name, kind in by_latent.items())


@contextmanager
def _evaluating(model: LatentDecoder) -> Iterator[None]:
    """Evaluation mode, and back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
