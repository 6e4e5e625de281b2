"""Requests in, scores out: in batches of like length, each in rounds, of twice the samples of the round before, for the scores
that have not converged. The trunk runs once for all rounds, and for what texts have in common (`texts`).

A round of importance sampling adds samples to those that are there; a round of `smc` is new filters. What a request draws
depends on its key and the number of the sample alone: scored in rounds, a request has the score that it would have alone.

`auto` goes through all that a text's latents can be, where that is no more than the samples allowed (`enumerating`). Else it
weighs, and filters what that does not settle: over a text of hundreds of sites the weights of whole paths spread more
than any number of them can make up for, and a filter, which lets the paths that explain the text so far have descendants, does
not care how long it is. A latent that is drawn once for all targets has no sites to filter over: where there is no other, more
samples are all that is left, and then better proposals: what the last round leaves unsettled is refined anew, by four times the
gradient steps, and weighed again, with draws of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from latentlm.errors import UserError
from latentlm.interface import Distribution, LatentDecoder, Noise
from latentlm.likelihood.enumerating import enumerated, supports
from latentlm.likelihood.filtering import filtered, islands, open_latents
from latentlm.likelihood.nats import fitting_rows
from latentlm.likelihood.paths import check_normalised
from latentlm.likelihood.refining import refined
from latentlm.likelihood.requests import How, Request
from latentlm.likelihood.results import (
    SIXTEENTHS_FROM,
    Method,
    Score,
    cautions,
    estimate,
    exact_score,
    islands_agree,
    runs,
    settled,
)
from latentlm.likelihood.texts import Texts, in_rows, reading_order
from latentlm.likelihood.weights import Weights, bound_samples, log_weights

DEFENSIVE = 0.5
"""Share of paths drawn from the target itself."""
FIRST_SAMPLES = 32
"""Of the first round."""
FIRST_PARTICLES = 256
"""Of the first filters that take over from importance sampling."""
AGAIN = 4
"""Times as many gradient steps for the proposals of what the samples did not settle and no filter can."""
PARTICLE_TOKENS = 2**18
"""Particles times tokens that are filtered together at most, unless one text has more: their keys and values are in memory."""
Progress = Callable[[int, int], None]
"""Called with the requests that are done and all of them."""


def estimated(model: LatentDecoder, requests: list[Request], how: How, progress: Progress | None = None) -> list[Score]:
    """A score for each request, in their order."""
    tell = progress or (lambda done, every: None)
    with _evaluating(model):
        values = supports(model, requests[0], how) if requests else None
        exact: dict[int, Score] = {}
        for number, request in enumerate(requests):
            if (score := enumerated(model, request, how, values)) is not None:
                exact[number] = _checked(score)
                tell(len(exact), len(requests))
        others = [number for number in range(len(requests)) if number not in exact]
        run = _Run(model, [requests[number] for number in others], how)
        for batch in run.batches():
            run.finish(batch)
            tell(len(exact) + len(run.scores), len(requests))
    found = exact | {number: run.scores[own] for own, number in enumerate(others)}
    return [found[number] for number in range(len(requests))]


def _checked(score: Score) -> Score:
    """Raises UserError where it is not a number."""
    if math.isnan(score.value):
        raise UserError("A log-likelihood is not a number: the logits are not finite; weights or precision are broken.")
    return score


class _Run:
    """A call under way."""

    def __init__(self, model: LatentDecoder, requests: list[Request], how: How) -> None:
        self.model, self.requests, self.how = model, requests, how
        self.scores: dict[int, Score] = {}
        self.proposals: dict[str, Distribution] = {}  # refined ones, of the batch under way, by latent
        self.places: dict[int, int] = {}  # of requests among their rows
        self.kinds = [(request.target, self._open(request)) for request in requests]
        self.shares = how.method != "smc" and not how.refine  # refined proposals and filters are one text's own
        self.checked = False

    def _open(self, request: Request) -> tuple[str, ...]:
        """The latents that are drawn once for all targets, where it matters to the method which these are."""
        matters = self.how.method in ("auto", "smc") or self.how.refine
        return open_latents(self.model, request.tokens, request.given) if matters else ()

    def _keys(self, numbers: list[int]) -> list[Hashable]:
        """What is the same where the random numbers are, and texts may share what they have in common."""
        return [self.requests[number].key if self.shares else number for number in numbers]

    def done(self, number: int, samples: int) -> bool:
        """Whether a score has converged, or the next round's samples would be too many."""
        return self.scores[number].converged or samples > self.how.max_samples

    def needs_filter(self, number: int) -> bool:
        """Whether a filter is to go on: weights that have not been settled, where it has sites to filter over."""
        how, score = self.how, self.scores[number]
        return how.method == "auto" and how.doubles and not score.settled and may_filter(self.model, self.requests[number])

    def batches(self) -> Iterator[list[int]]:
        """Requests that are treated alike, longest first, those of one context together; at most `batch_size` rows, and no more
        than fit the memory set aside (`fitting_rows`)."""
        requests, most_asked = self.requests, self.how.batch_size
        samples = self.how.samples if self.model.has_latents else 1
        tokens, given = [request.tokens for request in requests], [request.given for request in requests]
        contexts = [text[:own] for text, own in zip(tokens, given, strict=True)]
        rows = in_rows(tokens, given, self._keys(list(range(len(requests)))))
        order = sorted(reading_order(contexts, [len(text) for text in tokens]), key=lambda i: self.kinds[i])
        together: dict[Hashable, list[int]] = {}
        for i in order:
            together.setdefault((self.kinds[i], rows[i]), []).append(i)
        batch: list[list[int]] = []
        longest = 0  # not always the first: contexts of one family follow one another, whatever their lengths
        for row in together.values():
            longest = max(longest, len(requests[row[0]].tokens))
            most = fitting_rows(self.model, samples=samples, tokens=None if most_asked else longest)
            most = min(most, most_asked or most)
            if batch and (len(batch) >= most or self.kinds[row[0]] != self.kinds[batch[0][0]]):
                yield [i for one in batch for i in one]
                batch, longest = [], len(requests[row[0]].tokens)
            batch.append(row)
        if batch:
            yield [i for one in batch for i in one]

    def finish(self, numbers: list[int]) -> None:
        """Score some requests, round after round. Raises UserError where one is not a number."""
        texts = self._texts(numbers)
        if not self.checked:
            check_normalised(self.model, texts.context)
            self.checked = True
        self._refine(numbers, texts, self.how.refine)
        if self.model.has_latents and self.how.method == "smc":
            self._filter_all(numbers, self.how.samples)
            return
        to_filter = self._rounds(numbers, texts)
        self._filter_all(to_filter, min(FIRST_PARTICLES, self.how.max_samples))
        left = [number for number in numbers if number not in to_filter and self.refines_again(number)]
        if left:
            texts, before = self._texts(left), {number: self.scores[number].near_ties for number in left}
            self._refine(left, texts, AGAIN * self.how.refine)
            self._rounds(left, texts, again=True)
            for number, ties in before.items():  # which may have decided that there is a second time
                self.scores[number] = replace(self.scores[number], near_ties=self.scores[number].near_ties + ties)

    def refines_again(self, number: int) -> bool:
        """Whether a request has a refined proposal (none is made for one target, whose draws are the target's) and the last
        round has not settled it."""
        several = len(self.requests[number].tokens) - self.requests[number].given > 1
        return bool(self.proposals) and several and self.how.doubles and not self.scores[number].settled

    def _rounds(self, numbers: list[int], texts: Texts, *, again: bool = False) -> list[int]:
        """Weigh, round after round; the requests that filters are to go on with. `again`: with draws of their own."""
        weights, samples, had, to_filter = None, self.how.samples, 0, list[int]()
        while numbers:
            if not self.model.has_latents:
                self._exact(numbers, texts)
            else:
                weights = self._weigh(numbers, texts, samples, had, weights, again=again)
            self._check(numbers)
            had, samples = samples, 2 * samples
            to_filter += filter(self.needs_filter, numbers)
            left = [
                place for place, number in enumerate(numbers) if not (self.done(number, samples) or self.needs_filter(number))
            ]
            if left and len(left) < len(numbers):
                chosen = torch.tensor(left, device=self.model.device)
                texts, weights = texts.select(chosen), weights if weights is None else weights.select(chosen)
            numbers = [numbers[place] for place in left]
        return to_filter

    def _filter_all(self, numbers: list[int], samples: int) -> None:
        """Filter requests, as many together as fit, round after round."""
        while numbers:
            longest = max(len(self.requests[number].tokens) for number in numbers)
            together = min(self.how.batch_size or len(numbers), PARTICLE_TOKENS // (samples * longest))
            together = max(1, min(together, fitting_rows(self.model, samples=samples, tokens=None)))
            for start in range(0, len(numbers), together):
                some = numbers[start : start + together]
                self._filter(some, self._texts(some, shares=False), samples)
                self._check(some)
            samples *= 2
            numbers = [number for number in numbers if not self.done(number, samples)]

    def _check(self, numbers: list[int]) -> None:
        """Raises UserError where a score is not a number."""
        for number in numbers:
            _checked(self.scores[number])

    def _texts(self, numbers: list[int], *, shares: bool = True) -> Texts:
        """With the trunk's pass, which serves all rounds. `shares`: texts may share rows."""
        batch = [self.requests[number] for number in numbers]
        tokens, given = [request.tokens for request in batch], [request.given for request in batch]
        return Texts.of(self.model, tokens, given, keys=self._keys(numbers) if shares else None)

    def _exact(self, numbers: list[int], texts: Texts) -> None:
        found = log_weights(self.model, texts, Noise([]), target="prior", proposal="target", greedy=self.how.greedy)
        greedy = self._greedy(numbers, found.greedy)
        for number, nats, certain in zip(numbers, found.nats[:, 0].tolist(), greedy, strict=True):
            request = self.requests[number]
            self.scores[number] = exact_score(
                nats,
                tokens=len(request.tokens) - request.given,
                method=self.how.method,
                tolerance=request.tolerance,
                greedy=certain,
            )

    def _weigh(
        self, numbers: list[int], texts: Texts, samples: int, had: int, before: Weights | None, *, again: bool
    ) -> Weights:
        """By importance sampling, or the bound: bring the weights from `had` to `samples` samples."""
        model, how = self.model, self.how
        batch = [self.requests[number] for number in numbers]
        keys = [(batch[place].key, "again") if again else batch[place].key for place in texts.firsts.tolist()]
        noise = Noise.keyed(how.seed, keys, samples=samples - had, first=had)
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
        whole = found if before is None else before.plus(found)
        values, errors, effective, quarters, sixteenths = (
            part.tolist() for part in estimate(whole.log_weights, whole.parts(), whole.strata(), method=how.method)
        )
        known = [True] * len(batch) if how.method == "elbo" else settled(whole.log_weights)
        certain, ties, proposals = self._greedy(numbers, whole.greedy), whole.near_ties.tolist(), _proposals(whole.proposals)
        for row, (number, request) in enumerate(zip(numbers, batch, strict=True)):
            self.scores[number] = Score(
                value=values[row],
                standard_error=errors[row],
                effective_samples=effective[row],
                freedom=max(1.0, effective[row] - 1),
                samples=whole.count,
                tokens=len(request.tokens) - request.given,
                method=_weighed(how.method, request),
                quarter=quarters[row],
                settled=float(known[row]),
                sixteenth=sixteenths[row] if whole.count >= SIXTEENTHS_FROM else math.nan,  # one NaN: equal scores are equal
                tolerance=request.tolerance,
                greedy=certain[row],
                near_ties=ties[row],
                proposal=proposals[row],
                warnings=cautions(effective[row], whole.count, known=known[row], what="samples"),
            )
        return whole

    def _filter(self, numbers: list[int], texts: Texts, samples: int) -> None:
        """By islands that have so many particles together."""
        batch = [self.requests[number] for number in numbers]
        many, particles = islands(samples)
        found = filtered(
            self.model,
            texts,
            Noise.keyed(self.how.seed, [(request.key, "smc", particles) for request in batch], samples=many * particles),
            particles=particles,
            target=batch[0].target,
            proposed=self.kinds[numbers[0]][1],
            defensive=self.how.defensive,
            last_latent=self.how.last_latent,
            refined=self._refined(numbers, texts),
        )
        estimates = found.log_weights.cpu()  # (B, M)
        parts = [estimates[:, start:stop] for start, stop in runs(many, 4)]
        values, errors, effective, quarters, _ = (
            part.tolist() for part in estimate(estimates, (parts, ()), None, method="smc")
        )
        certain, proposals = self._greedy(numbers, found.greedy if self.how.greedy else None), _proposals(found.proposals)
        agree = islands_agree(estimates)
        for row, (number, request) in enumerate(zip(numbers, batch, strict=True)):
            before = self.scores.get(number)
            self.scores[number] = Score(
                value=values[row],
                standard_error=errors[row],
                effective_samples=effective[row] * particles,
                freedom=max(1.0, many - 1),
                samples=many * particles,
                tokens=len(request.tokens) - request.given,
                method="smc",
                quarter=quarters[row],
                sixteenth=quarters[row],
                islands=(values[row], quarters[row]),
                tolerance=request.tolerance,
                settled=float(agree[row]),
                greedy=certain[row] if before is None else before.greedy,  # the first round's draws are as good as any
                near_ties=int(found.near_ties[row]) + (before.near_ties if before else 0),
                proposal=proposals[row],
                warnings=cautions(effective[row], many, known=agree[row], what="islands"),
            )

    def _refine(self, numbers: list[int], texts: Texts, steps: int) -> None:
        """Refine the proposal of the first latent, where one site of it is open over all targets, for a batch."""
        self.proposals, (target, opened), how = {}, self.kinds[numbers[0]], self.how
        if not (steps and opened) or how.method in ("prior", "elbo"):
            return
        noise = Noise.keyed(how.seed, [(self.requests[number].key, "refining") for number in numbers])
        found = refined(self.model, texts, noise, target=target, last_latent=how.last_latent, steps=steps)
        if found is not None:
            self.proposals, self.places = {opened[0]: found}, {number: row for row, number in enumerate(numbers)}

    def _refined(self, numbers: list[int], texts: Texts) -> dict[str, Distribution]:
        """The refined proposals of some requests of the batch, which may have fewer sites than the whole."""
        if not self.proposals:
            return {}
        rows = torch.tensor([self.places[number] for number in numbers], device=self.model.device)
        return {
            name: found.select(rows).narrow(0, texts.context.sites_of(name).mask.shape[1])
            for name, found in self.proposals.items()
        }

    def _greedy(self, numbers: list[int], found: Tensor | None) -> list[bool | None]:
        """Whether every token of each continuation is greedy, from (A, N); None where nobody asked."""
        if found is None:
            return [None] * len(numbers)
        skipped = [self.requests[number].begins - self.requests[number].given for number in numbers]
        return [all(row[start:]) for row, start in zip(found.tolist(), skipped, strict=True)]


def may_filter(model: LatentDecoder, request: Request) -> bool:
    """Whether some latent has sites to filter over: not all are drawn once for all targets."""
    return len(open_latents(model, request.tokens, request.given)) < len(model.latents)


def _weighed(method: Method, request: Request) -> str:
    """The importance sampling that a score is by."""
    otherwise: Method = "operational" if request.target == "generation" else "iwae"
    return otherwise if method == "auto" else method


def _proposals(by_latent: Mapping[str, Tensor]) -> list[str]:
    """What each text's latents were drawn from, in a word where it is the same for all."""
    found = []
    for row in zip(*(own.tolist() for own in by_latent.values()), strict=True):
        kinds = ["posterior" if proposed else "target" for proposed in row]
        said = ", ".join(f"{name}: {kind}" for name, kind in zip(by_latent, kinds, strict=True))
        found.append(kinds[0] if len(set(kinds)) == 1 else said)
    return found


@contextmanager
def _evaluating(model: LatentDecoder) -> Iterator[None]:
    """Evaluation mode, and back. Threads share the mode: where it is right already, it is not touched."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
