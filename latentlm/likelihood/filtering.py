"""`smc`: the likelihood by a particle filter through the decoder's own `prefill`, `step` and `select` (Doucet & Johansen 2011).

    a particle        one row of a generation: the text so far, and latents drawn as `generate` draws them
    at each target    weights are multiplied by p(x_{t+1} | x_<=t, z); where the effective sample size falls below K/2,
    particles are
                      resampled (systematic) and the weights are even again
    the estimate      product over the targets of the mean weight: unbiased for exp of the target (Del Moral 2004, 7.4.1)

The target is that of `operational` for a continuation (latents of the context from the encoder run on the context alone) and
that of `iwae` for a text. On the way it yields normalised predictive distributions sum_k W_k p(. | x_<=t, z_k), of which the
greedy check asks for nothing more.

A latent whose site stays open over all targets (a document's vector) gains nothing from resampling, which only makes its values
fewer: it is drawn once for each particle from the defensive proposal of `iwae` and carries its weight, so far as the latents
before it do so too.

Error. Particles descend from the K first ones. The total weight of each one's descendants takes the place of a sample's
weight in the jackknife (Chan & Lai 2013; Lee & Whiteley 2018): without resampling, the two are the same. When few first
particles have descendants left, the error is too large rather than too small.

Legend: B texts, K particles, R = B*K rows, N targets, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentlm.interface import Distribution, LatentDecoder, LatentSource, Noise, State, count_sites
from latentlm.likelihood.paths import LastLatent, Target, draw_paths, from_target, mixture
from latentlm.likelihood.texts import Texts

RESAMPLE_BELOW = 0.5
"""Share of K that the effective sample size falls below before particles are resampled."""
_ROUNDING = 1e-6
"""Cumulated weights differ by so much between batch shapes."""


@dataclass(frozen=True)
class Filtered:
    """What a filter says of each text."""

    value: Tensor
    """(B,) float64 nats: log of the estimate."""
    roots: Tensor
    """(B, K) float64 nats: log of each first particle's share in the estimate, -inf where no descendant is left."""
    token_nats: Tensor
    """(B, N) float64: log of the predictive probability of each target; zero outside the mask. They sum to `value` where no
    latent is proposed."""
    greedy: Tensor
    """(B, N) bool: the target is the argmax of the predictive distribution; true outside the mask."""
    resampled: Tensor
    """(B,) long: how often."""
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
    target: Target,
    proposed: Sequence[str] = (),
    defensive: float = 0.0,
    last_latent: LastLatent | Mapping[str, LastLatent] = "posterior",
    refined: Mapping[str, Distribution] | None = None,
) -> Filtered:
    """Filter texts, each a row of its own, that have `open_latents` alike, `proposed`; `noise` has K rows for each. Needs a
    decoder with latents."""
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
    first = paths.log_target - mixture(paths.log_proposal, paths.log_target, share)
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
    run = _Filter(model, texts, noise, first.view(-1, count), paths.near_ties)
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
        self.model, self.texts, self.noise, self.weights, self.near_ties = model, texts, noise, log_weights, near_ties
        rows, count = log_weights.shape
        self.ones = noise.select([row * count for row in range(rows)]).stream("resampling")
        self.roots = torch.arange(count, device=log_weights.device).expand(rows, -1)
        self.value = log_weights.new_zeros(rows)
        self.resampled = torch.zeros_like(near_ties)

    def through(self, state: State, proposals: Mapping[str, Tensor]) -> Filtered:
        """Over all targets."""
        texts, (rows, count) = self.texts, self.weights.shape
        nats, greedy = [], []
        for place in range(texts.targets.shape[1]):
            wanted, real = texts.targets[:, place], texts.mask[:, place]
            log_probs = state.logits.log_softmax(-1).view(rows, count, -1)
            even = self.weights.log_softmax(-1)  # (B, K)
            predictive = (log_probs + even.to(log_probs)[..., None]).logsumexp(1)  # (B, V)
            greedy.append((predictive.argmax(-1) == wanted) | ~real)
            own = log_probs.gather(-1, wanted[:, None, None].expand(-1, count, 1))[..., 0].double()  # (B, K)
            nats.append((even + own).logsumexp(-1).masked_fill(~real, 0.0))
            self.weights = self.weights + own.masked_fill(~real[:, None], 0.0)
            if place + 1 < texts.targets.shape[1]:
                state = self._resampled(state, place, texts.mask[:, place + 1])
                state = self.model.step(state, wanted.repeat_interleave(count), noise=self.noise)
        top = self.weights.amax(-1, keepdim=True)
        shares = torch.zeros_like(self.weights).scatter_add(1, self.roots, (self.weights - top).exp())
        return Filtered(
            value=self.value + self.weights.logsumexp(-1) - math.log(count),
            roots=shares.log() + top + self.value[:, None],
            token_nats=torch.stack(nats, dim=1),
            greedy=torch.stack(greedy, dim=1),
            resampled=self.resampled,
            near_ties=self.near_ties,
            proposals=proposals,
        )

    def _resampled(self, state: State, place: int, goes_on: Tensor) -> State:
        """Resample the particles of those texts that need it and go on."""
        rows, count = self.weights.shape
        share = self.weights.log_softmax(-1).exp()
        effective = 1 / (count * share.square().sum(-1))  # as a share of K
        chosen = (effective < RESAMPLE_BELOW) & goes_on
        self.near_ties = self.near_ties + ((effective - RESAMPLE_BELOW).abs() < _ROUNDING)
        if not bool(chosen.any()):
            return state
        offset = self.ones.at([place]).uniform(1, 1, device=share.device)[:, 0].double()  # (B, 1)
        points = (offset + torch.arange(count, device=share.device)) / count  # (B, K)
        reached = share.cumsum(-1)
        parents = torch.searchsorted(reached, points, right=True).clamp(max=count - 1)
        close = (reached.gather(1, parents) - points).abs() < _ROUNDING
        close |= (reached.gather(1, (parents - 1).clamp(min=0)) - points).abs() < _ROUNDING
        self.near_ties = self.near_ties + (close.sum(-1) * chosen)
        same = torch.arange(count, device=share.device).expand_as(parents)
        parents = torch.where(chosen[:, None], parents, same)
        level = self.weights.logsumexp(-1) - math.log(count)
        self.value = self.value + level.masked_fill(~chosen, 0.0)
        self.weights = torch.where(chosen[:, None], 0.0, self.weights)
        self.roots = self.roots.gather(1, parents)
        self.resampled = self.resampled + chosen
        base = torch.arange(rows, device=share.device)[:, None] * count
        return self.model.select(state, (base + parents).flatten())
