"""Better proposals for a document's vector: the encoder's posterior, moved a few steps of gradient towards what explains the
text.

    q*  =  minimise over the parameters of q, from the encoder's on,  -E_q log p(targets | z) + KL(q || r)      (nats)

with r what the target draws each site from: its prior, or q(z | context alone). Adam, a keyed draw of q per step
(semi-amortised inference: Kim et al. 2018, arXiv 1802.02550). Only the proposal is refined, never the target: an estimate is
as valid as before, since its weights divide by the density that the latents were drawn from, and it needs fewer samples.

A diagonal Gaussian cannot say that dimensions depend on one another given the text, and its samples then miss most of what
matters. Where the decoder has no other latent, a Gaussian q* gets the full covariance of the curvature at its mean (Laplace):

    H   =  second derivatives of  -log p(targets | z) - log r(z),  by differences of gradients one std of q* to either side
    C   =  inverse of H, with the curvature in every direction at least that of r (of q*, where r is no Gaussian)

Only the first latent is refined, and only where one site of it is open over all targets. Other latents are drawn once, from
their encoders where they have one, and what they cost given z counts.

Legend: B texts, S sites, E event dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from latentlm.interface import Distribution, Gaussian, Latent, LatentDecoder, Latents, Noise, noise_of
from latentlm.likelihood.nats import path_likelihood
from latentlm.likelihood.paths import LastLatent, Sites, Target, classify
from latentlm.likelihood.texts import Texts

RATE = 0.1
"""Of Adam, for every parameter of a posterior; it falls to zero over the steps by a cosine."""
MOST_DIMS = 128
"""Dimensions of a vector that gets a full covariance: its curvature takes the gradients of twice as many latents."""
GRADIENT_TOKENS = 2**12
"""Latent rows times tokens that are held for their gradients at a time."""


def refined(
    model: LatentDecoder,
    texts: Texts,
    noise: Noise,
    *,
    target: Target,
    last_latent: LastLatent | Mapping[str, LastLatent],
    steps: int,
) -> Distribution | None:
    """The first latent's posterior, refined, (B, S, E); `noise` has a row for each text. None where there is no encoder,
    nothing is proposed, or no gradient reaches the posterior's parameters through its draws."""
    name = next(iter(model.latents))
    sites = classify(model, texts.context, texts.lengths, target=target, last_latent=last_latent)[name]
    if not model.latents[name].has_encoder or not bool(sites.proposed.any()):
        return None
    start = model.posterior(texts.context, name)
    if start.deterministic or not start.parameters:
        return None
    reference = _Reference(model, texts, name, sites)
    leaves: list[Tensor] = []

    def leaf(parameter: Tensor) -> Tensor:
        leaves.append(parameter.detach().clone().requires_grad_())
        return leaves[-1]

    with torch.enable_grad():
        posterior = start.mapped(leaf)
        adam = torch.optim.Adam(leaves, lr=RATE)
        for step in range(steps):
            for group in adam.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            cost = _cost(model, texts, name, posterior, reference, noise, step)
            if not cost.requires_grad:
                return None
            slopes = torch.autograd.grad(cost.sum(), leaves, allow_unused=True)
            for parameter, slope in zip(leaves, slopes, strict=True):
                parameter.grad = slope
            adam.step()
    found = posterior.mapped(lambda parameter: parameter.detach())
    if isinstance(found, Gaussian) and len(model.latents) == 1 and found.shape[-1] <= MOST_DIMS:
        return _curved(model, texts, name, found, reference)
    return found


class Curved(Distribution):
    """Independent normal dimensions, but correlated ones at some sites. Only these sites' factors are kept, once for each:
    picked rows share them."""

    parameters: ClassVar[tuple[str, ...]] = ("diagonal", "which")

    def __init__(self, diagonal: Gaussian, which: Tensor, scale_trils: Tensor) -> None:
        """`diagonal` (B, S, E); `which` (B, S) long, the factor of a site, or -1 for none; `scale_trils` (N, E, E), Cholesky
        factors of covariances."""
        self.diagonal, self.which, self.scale_trils = diagonal, which, scale_trils

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        return self.diagonal.shape

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """(B, S, E), from the numbers that the diagonal one would be drawn from."""
        assert not differentiable, "a proposal is drawn from, not learned"
        value, mean = self.diagonal.sample(noise).value, self.diagonal.mean
        epsilon = noise.normal(*self.shape[1:], device=value.device).to(value)
        for sites, scale_tril in self._correlated():
            value[sites] = mean[sites] + epsilon[sites] @ scale_tril.mT
        return Latent(value)

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        found, mean = self.diagonal.log_prob(latent), self.diagonal.mean
        for sites, scale_tril in self._correlated():
            away = (latent.value[sites] - mean[sites]).mT
            scaled = torch.linalg.solve_triangular(scale_tril, away, upper=False)  # (E, sites)
            each = 0.5 * scaled.square() + scale_tril.diagonal().log()[:, None] + 0.5 * math.log(2.0 * math.pi)
            found[sites] = -each.sum(0)
        return found

    def tempered(self, temperature: float) -> Curved:
        """Standard deviations times the temperature."""
        return Curved(self.diagonal.tempered(temperature), self.which, self.scale_trils * temperature)

    def _correlated(self) -> list[tuple[Tensor, Tensor]]:
        """Where each factor's sites are, (B, S) bool, and the factor."""
        numbers = [number for number in self.which.unique().tolist() if number >= 0]
        return [(self.which == number, self.scale_trils[number]) for number in numbers]


class _Reference:
    """r, what the target draws a latent from: q(z | context alone) at the sites of a context, the prior at the others."""

    def __init__(self, model: LatentDecoder, texts: Texts, name: str, sites: Sites) -> None:
        self.model, self.context, self.name, self.sites = model, texts.context, name, sites
        encoded = bool(sites.encoded.any())
        self.encoder = model.posterior(texts.context.before(texts.lengths), name) if encoded else None

    def tells(self, said: Callable[[Distribution], Tensor], latents: Latents, rows: Tensor | None = None) -> Tensor:
        """What is said of r, (R, S, ...), at these latents, each of one of the texts `rows` (all, if None)."""
        of_prior = said(self.model.prior(self.context, self.name, latents))
        if self.encoder is None:
            return of_prior
        encoder = self.encoder if rows is None else self.encoder.select(rows)
        encoded = self.sites.encoded if rows is None else self.sites.encoded[rows]
        return torch.where(encoded.unflatten(1, (-1, *[1] * (of_prior.dim() - 2))), said(encoder), of_prior)


def _curved(model: LatentDecoder, texts: Texts, name: str, q: Gaussian, reference: _Reference) -> Distribution:
    """q with the covariance of the curvature at its mean, at the one site of each text that is proposed."""
    proposed = reference.sites.proposed
    rows, site = torch.arange(len(proposed), device=proposed.device), proposed.long().argmax(1)
    std = q.log_std.exp()[rows, site]  # (B, E)
    axes = torch.diag_embed(std)
    together = max(1, GRADIENT_TOKENS // texts.context.tokens.numel())
    slopes = [
        _slopes(model, texts, name, q.mean, site, away, reference)
        for away in torch.cat((axes, -axes), dim=1).split(together, dim=1)
    ]
    above, below = torch.cat(slopes, dim=1).double().chunk(2, dim=1)
    curvature = (above - below) / (2 * std.double()[..., None])  # (B, E, E)
    finite = curvature.flatten(1).isfinite().all(1)
    means = Latents({name: Latent(q.mean)})
    scale = reference.tells(lambda r: (r if isinstance(r, Gaussian) else q).log_std.exp(), means)[rows, site].double()
    curvature = torch.where(finite[:, None, None], curvature, 0.0) * scale[:, :, None] * scale[:, None, :]
    values, vectors = torch.linalg.eigh((curvature + curvature.mT) / 2)
    covariance = (vectors / values.clamp(min=1.0)[:, None, :]) @ vectors.mT * scale[:, :, None] * scale[:, None, :]
    which = torch.full_like(proposed, -1, dtype=torch.long)
    which[rows, site] = torch.where(finite & proposed.any(1), rows, -1)
    return Curved(q, which, torch.linalg.cholesky(covariance).to(q.mean))


def _slopes(
    model: LatentDecoder, texts: Texts, name: str, mean: Tensor, site: Tensor, away: Tensor, reference: _Reference
) -> Tensor:
    """Gradients (B, k, E) of -log p(targets | z) - log r(z), the vector at `site` (B,) being `away` (B, k, E) from its mean."""
    count, many, _ = away.shape
    rows = torch.arange(count, device=mean.device)
    each = rows.repeat_interleave(many)  # (R,)
    with torch.enable_grad():
        vectors = (mean[rows, site][:, None] + away).flatten(0, 1).requires_grad_()  # (R, E)
        latent = Latent(mean[each].index_put((torch.arange(len(each), device=mean.device), site[each]), vectors))
        latents = Latents({name: latent})
        log_r = reference.tells(lambda r: r.log_prob(latent), latents, each)
        nats, _ = path_likelihood(model, texts, latents, greedy=False)
        total = nats.sum() + log_r.masked_fill(~texts.context.sites_of(name).mask[each], 0.0).sum()
        (slopes,) = torch.autograd.grad(-total, [vectors])
    return slopes.view_as(away)


def _cost(
    model: LatentDecoder,
    texts: Texts,
    name: str,
    posterior: Distribution,
    reference: _Reference,
    noise: Noise,
    step: int,
) -> Tensor:
    """(B,) nats of each text under one draw."""
    names, drawn, total = list(model.latents), Latents({}), torch.zeros(texts.context.rows, device=model.device)
    for other, latent in model.latents.items():
        own = noise_of(noise, other, names).stream(f"refining/{step if other == name else 0}")
        if other == name:
            z = posterior.sample(own, differentiable=True)
            drawn = drawn.plus(other, z)
            cost = reference.tells(lambda r, z=z: posterior.kl(r, z).sum(-1), drawn)  # type: ignore[misc]
        elif latent.has_encoder:
            q = model.posterior(texts.context, other, drawn)
            z = q.sample(own)
            drawn = drawn.plus(other, z)
            cost = q.kl(model.prior(texts.context, other, drawn), z).sum(-1)
        else:
            drawn = drawn.plus(other, _from_prior(model, texts, other, own, drawn))
            continue
        total = total + cost.masked_fill(~texts.context.sites_of(other).mask, 0.0).sum(1)
    nats, _ = path_likelihood(model, texts, drawn, greedy=False)
    return total - nats[:, 0]


def _from_prior(model: LatentDecoder, texts: Texts, name: str, noise: Noise, above: Latents) -> Latent:
    """A draw of every site of a latent without an encoder."""
    if not model.latents[name].autoregressive:
        return model.prior(texts.context, name, above).sample(noise)
    every = texts.context.sites_of(name).mask
    held = torch.zeros(*every.shape, model.latents[name].dims, device=model.device)
    return model.sample_sites(texts.context, noise, held=held, needed=every, name=name, above=above)
