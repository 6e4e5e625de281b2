"""`smc`: the likelihood by particle filters through the decoder's own `prefill`, `step_along` and `resample` (Doucet & Johansen
2011).

    a particle        one row of a generation: the text so far, and latents drawn as `generate` draws them
    at each target    weights are multiplied by p(x_{t+1} | x_<=t, z); where the effective sample size falls below half of the
                      particles, they are resampled (systematic) and the weights are even again
    the estimate      product over the targets of the mean weight: unbiased for exp of the target (Del Moral 2004, 7.4.1)

K particles are M *islands*, filters that know nothing of one another, of K/M particles each. Their mean is unbiased, and their
spread says how far off it is, which the particles of one filter do not: all that are left at the end of a long text
descend from one or two of the first. An island stands where importance sampling has a sample: value, error, effective size and
what fewer would have said are made of the islands' estimates by the same formulas (`results`).

The target is that of `operational` for a continuation (latents of the context from the encoder run on the context alone) and
that of `iwae` for a text. On the way it yields normalised predictive distributions sum_k W_k p(. | x_<=t, z_k) over the
particles of all islands, of which the greedy check asks for nothing more.

A latent whose site stays open over all targets (a document's vector) gains nothing from resampling, which only makes its values
fewer: it is drawn once for each particle from the defensive proposal of `iwae` and carries its weight, so far as the latents
before it do so too. The log of that weight is taken in even parts, one with each target: taken at once it would have a value
that the whole text speaks for resampled away before the text has spoken. At the end every particle has all of it, whatever it
was resampled by, and the estimate is unbiased as before.

Cost. The trunk, which is free of z, runs over the targets once for each text (`LatentDecoder.step_along`); the blocks above run
once for each particle and token. Given tokens are fed to every particle (`prefill`).

Legend: B texts, M islands, P particles of each, K = M*P, R = B*K rows, N targets, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentlm.interface import Distribution, LatentDecoder, LatentSource, Noise, State, count_sites
from latentlm.likelihood.paths import LastLatent, Target, draw_paths, from_target, mixture
from latentlm.likelihood.results import ISLANDS
from latentlm.likelihood.texts import Texts

RESAMPLE_BELOW = 0.5
"""Share of an island's particles that its effective sample size falls below before they are resampled."""
LEAST_PARTICLES = 4
"""Of an island, else there are fewer of them: one of two would never be resampled."""
_ROUNDING = 1e-6
"""Cumulated weights differ by so much between batch shapes."""


def islands(samples: int) -> tuple[int, int]:
    """How many islands of how many particles each so many samples make; what is left over is not drawn."""
    many = max(1, min(ISLANDS, samples // LEAST_PARTICLES))
    return many, samples // many


@dataclass(frozen=True)
class Filtered:
    """What the filters say of each text."""

    log_weights: Tensor
    """(B, M) float64 nats: log of each island's estimate."""
    token_nats: Tensor
    """(B, N) float64: log of the predictive probability of each target; zero outside the mask. They sum to the log of the mean
    estimate where no latent is proposed."""
    greedy: Tensor
    """(B, N) bool: the target is the argmax of the predictive distribution; true outside the mask."""
    resampled: Tensor
    """(B,) long: how often, in all islands."""
    near_ties: Tensor
    """(B,) long: choices that rounding can turn."""
    proposals: Mapping[str, Tensor]
    """Latent -> (B,) bool: it is proposed by a posterior that has seen the targets."""


@torch.no_grad()
def filtered(
    model: LatentDecoder,
    texts: Texts,
    noise: Noise,
    *,
    particles: int,
    target: Target,
    proposed: Sequence[str] = (),
    defensive: float = 0.0,
    last_latent: LastLatent | Mapping[str, LastLatent] = "posterior",
    refined: Mapping[str, Distribution] | None = None,
) -> Filtered:
    """Filter texts, each a row of its own, that have `open_latents` alike, `proposed`; `noise` has K rows for each, every
    `particles` of which are an island. Needs a decoder with latents."""
    assert model.has_latents
    count = len(noise) // texts.context.rows
    paths = draw_paths(
        model,
        texts.context,
        texts.lengths,
        noise,
        target=target,
        proposal="posterior",
        defensive=defensive,
        last_latent=last_latent,
        names=proposed,
        refined=refined,
    )
    share = len(from_target(defensive, 0, count)) / count
    weights = paths.log_target - mixture(paths.log_proposal, paths.log_target, share)
    rows = torch.arange(texts.context.rows, device=model.device).repeat_interleave(count)
    sources: dict[str, LatentSource] = dict.fromkeys(model.latents, "posterior" if target == "generation" else "prior")
    state = model.prefill(
        texts.context.tokens[rows][:, : int(texts.lengths.max())],
        texts.lengths[rows],
        latents={**sources, **paths.latents},
        noise=noise,
        last_latent=last_latent,
        capacity=texts.context.tokens.shape[1],
    )
    run = _Filter(model, texts, noise, weights.view(len(texts.rows), -1, particles), paths.near_ties)
    proposals = dict.fromkeys(model.latents, torch.zeros_like(texts.lengths, dtype=torch.bool)) | dict(paths.proposals)
    return run.through(state, proposals)


def open_latents(model: LatentDecoder, tokens: Sequence[int], given: int) -> tuple[str, ...]:
    """The latents of which one site is open over all targets of a text, up to the first latent of which none is."""
    names = []
    for name, latent in model.latents.items():
        if count_sites(latent.granularity, tokens[:given]) != count_sites(latent.granularity, tokens[:-1]):
            break
        names.append(name)
    return tuple(names)


class _Filter:
    """Particles under way."""

    def __init__(self, model: LatentDecoder, texts: Texts, noise: Noise, log_weights: Tensor, near_ties: Tensor) -> None:
        self.model, self.texts, self.noise, self.near_ties = model, texts, noise, near_ties
        rows, islands, particles = log_weights.shape
        self.ahead = texts.mask.sum(1)  # (B,) targets that are to come, and parts of the weights that particles begin with
        self.part = log_weights / self.ahead[:, None, None]
        self.weights = torch.zeros_like(log_weights)
        self.ones = noise.select(range(0, len(noise), particles)).stream("resampling")  # one for each island
        self.value = log_weights.new_zeros(rows, islands)
        self.resampled = torch.zeros_like(near_ties)

    def through(self, state: State, proposals: Mapping[str, Tensor]) -> Filtered:
        """Over all targets."""
        texts, (rows, _, particles) = self.texts, self.weights.shape
        nats, greedy = [], []
        for place in range(texts.targets.shape[1]):
            wanted, real = texts.targets[:, place], texts.mask[:, place]
            log_probs = state.logits.log_softmax(-1).view(rows, -1, state.logits.shape[-1])  # (B, K, V)
            whole = self.weights + self.part * self.ahead[:, None, None]
            share = (self.value[..., None] + whole).flatten(1).log_softmax(-1)  # (B, K)
            predictive = (log_probs + share.to(log_probs)[..., None]).logsumexp(1)  # (B, V)
            greedy.append((predictive.argmax(-1) == wanted) | ~real)
            own = log_probs.gather(-1, wanted[:, None, None].expand(-1, log_probs.shape[1], 1))[..., 0].double()  # (B, K)
            nats.append((share + own).logsumexp(-1).masked_fill(~real, 0.0))
            gained = own.view_as(self.weights) + self.part
            self.weights = self.weights + gained.masked_fill(~real[:, None, None], 0.0)
            self.ahead = self.ahead - real.long()
            if place + 1 < texts.targets.shape[1]:
                state = self._resampled(state, place, texts.mask[:, place + 1])
                here = (texts.lengths + place).clamp(max=texts.context.tokens.shape[1] - 1)  # rows that have ended go on idle
                state = self.model.step_along(state, texts.context, here, noise=self.noise)
        return Filtered(
            log_weights=self.value + self.weights.logsumexp(-1) - math.log(particles),
            token_nats=torch.stack(nats, dim=1),
            greedy=torch.stack(greedy, dim=1),
            resampled=self.resampled,
            near_ties=self.near_ties,
            proposals=proposals,
        )

    def _resampled(self, state: State, place: int, goes_on: Tensor) -> State:
        """Resample the particles of those islands that need it and go on."""
        rows, islands, particles = self.weights.shape
        share = self.weights.log_softmax(-1).exp()
        effective = 1 / (particles * share.square().sum(-1))  # (B, M), as a share of P
        chosen = (effective < RESAMPLE_BELOW) & goes_on[:, None]
        self.near_ties = self.near_ties + (((effective - RESAMPLE_BELOW).abs() < _ROUNDING) & goes_on[:, None]).sum(-1)
        if not bool(chosen.any()):
            return state
        offset = self.ones.at([place]).uniform(1, 1, device=share.device).double().view(rows, islands, 1)
        points = (offset + torch.arange(particles, device=share.device)) / particles  # (B, M, P)
        reached = share.cumsum(-1)
        parents = torch.searchsorted(reached, points, right=True).clamp(max=particles - 1)
        close = (reached.gather(-1, parents) - points).abs() < _ROUNDING
        close |= (reached.gather(-1, (parents - 1).clamp(min=0)) - points).abs() < _ROUNDING
        self.near_ties = self.near_ties + (close.sum(-1) * chosen).sum(-1)
        parents = torch.where(chosen[..., None], _in_place(parents), torch.arange(particles, device=share.device))
        level = self.weights.logsumexp(-1) - math.log(particles)
        self.value = self.value + level.masked_fill(~chosen, 0.0)
        self.weights = torch.where(chosen[..., None], 0.0, self.weights)
        self.part = self.part.gather(-1, parents)
        self.resampled = self.resampled + chosen.sum(-1)
        base = torch.arange(0, rows * islands * particles, particles, device=share.device)[:, None]  # (B*M, 1)
        return self.model.resample(state, (base + parents.view(-1, particles)).flatten())


def _in_place(parents: Tensor) -> Tensor:
    """Parents (..., P), rising, in an order in which each that has children stays where it is: only the rows of those without
    are written."""
    children = torch.zeros_like(parents).scatter_add_(-1, parents, torch.ones_like(parents))
    # Rows without children, in their order, take the children beyond the first, in theirs.
    beyond = torch.zeros_like(parents, dtype=torch.bool)
    beyond[..., 1:] = parents[..., 1:] == parents[..., :-1]
    extra = (~beyond).long().argsort(dim=-1, stable=True)
    empty = (children > 0).long().argsort(dim=-1, stable=True)
    rank = torch.arange(parents.shape[-1]).to(parents)
    taken = torch.where(rank < beyond.sum(-1, keepdim=True), parents.gather(-1, extra), empty)
    return torch.empty_like(parents).scatter_(-1, empty, taken)
