"""Better proposals for a document's vector: the encoder's posterior, moved a few steps of gradient towards what explains the
text.

    q*  =  minimise over the parameters of q, from the encoder's on,  -E_q log p(targets | z) + KL(q || r)      (nats)

with r what the target draws the latent from: its prior, or q(z | context alone). Adam, a keyed draw of q per step
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
from collections.abc import Mapping

import torch
from torch import Tensor

from latentlm.interface import (
    Distribution,
    Gaussian,
    Latent,
    LatentDecoder,
    Latents,
    MultivariateGaussian,
    Noise,
    noise_of,
)
from latentlm.likelihood.nats import path_likelihood
from latentlm.likelihood.paths import LastLatent, Target, classify
from latentlm.likelihood.texts import Texts

RATE = 0.1
"""Of Adam, for every parameter of a posterior; it falls to zero over the steps by a cosine."""
MOST_DIMS = 256
"""Dimensions of a vector that gets a full covariance: its curvature takes the gradients of twice as many latents."""
GRADIENT_TOKENS = 2**13
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
    reference = model.posterior(texts.context.before(texts.lengths), name) if bool(sites.encoded.any()) else None
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
        return _curved(model, texts, name, found, reference, sites.proposed)
    return found


def _curved(
    model: LatentDecoder, texts: Texts, name: str, q: Gaussian, reference: Distribution | None, proposed: Tensor
) -> Distribution:
    """q with the covariance of the curvature at its mean, at the one site of each text that is `proposed` (B, S)."""
    rows, site = torch.arange(q.shape[0], device=q.mean.device), proposed.long().argmax(1)
    std = q.log_std.exp()
    axes = torch.diag_embed(std[rows, site])  # (B, E, E)
    together = max(1, GRADIENT_TOKENS // texts.context.tokens.numel())
    slopes = [
        _slopes(model, texts, name, q.mean, site, away, reference)
        for away in torch.cat((axes, -axes), dim=1).split(together, dim=1)
    ]
    above, below = torch.cat(slopes, dim=1).double().chunk(2, dim=1)
    curvature = (above - below) / (2 * std[rows, site].double()[..., None])  # (B, E, E)
    if not bool(curvature.isfinite().all()):
        return q
    r = model.prior(texts.context, name, Latents({name: Latent(q.mean)})) if reference is None else reference
    scale = (r if isinstance(r, Gaussian) else q).log_std.exp()[rows, site].double()
    curvature = curvature * scale[:, :, None] * scale[:, None, :]
    values, vectors = torch.linalg.eigh((curvature + curvature.mT) / 2)
    covariance = (vectors / values.clamp(min=1.0)[:, None, :]) @ vectors.mT * scale[:, :, None] * scale[:, None, :]
    scale_tril = torch.diag_embed(std)  # (B, S, E, E)
    scale_tril[rows, site] = torch.linalg.cholesky(covariance).to(scale_tril)
    return MultivariateGaussian(q.mean, scale_tril)


def _slopes(
    model: LatentDecoder,
    texts: Texts,
    name: str,
    mean: Tensor,
    site: Tensor,
    away: Tensor,
    reference: Distribution | None,
) -> Tensor:
    """Gradients (B, k, E) of -log p(targets | z) - log r(z), the vector at `site` (B,) being `away` (B, k, E) from its mean."""
    count, many, _ = away.shape
    rows = torch.arange(count, device=mean.device)
    each = rows.repeat_interleave(many)
    with torch.enable_grad():
        vectors = (mean[rows, site][:, None] + away).flatten(0, 1).requires_grad_()  # (R, E)
        latent = Latent(mean[each].index_put((torch.arange(len(each), device=mean.device), site[each]), vectors))
        r = model.prior(texts.context, name, Latents({name: latent})) if reference is None else reference.select(each)
        log_r = r.log_prob(latent).masked_fill(~texts.context.sites_of(name).mask[each], 0.0).sum(1)
        nats, _ = path_likelihood(model, texts, Latents({name: latent}), greedy=False)
        (slopes,) = torch.autograd.grad(-(nats.sum() + log_r.sum()), [vectors])
    return slopes.view_as(away)


def _cost(
    model: LatentDecoder,
    texts: Texts,
    name: str,
    posterior: Distribution,
    reference: Distribution | None,
    noise: Noise,
    step: int,
) -> Tensor:
    """(B,) nats of each text under one draw."""
    names, drawn, total = list(model.latents), Latents({}), torch.zeros(texts.context.rows, device=model.device)
    for other, latent in model.latents.items():
        own = noise_of(noise, other, names).stream(f"refining/{step if other == name else 0}")
        if other == name:
            q, z = posterior, posterior.sample(own, differentiable=True)
        elif latent.has_encoder:
            q = model.posterior(texts.context, other, drawn)
            z = q.sample(own)
        else:
            drawn = drawn.plus(other, _from_prior(model, texts, other, own, drawn))
            continue
        drawn = drawn.plus(other, z)
        p = model.prior(texts.context, other, drawn) if other != name or reference is None else reference
        cost = q.kl(p, z)
        mask = texts.context.sites_of(other).mask[..., None]
        total = total + cost.masked_fill(~mask, 0.0).sum((1, 2))
    nats, _ = path_likelihood(model, texts, drawn, greedy=False)
    return total - nats[:, 0]


def _from_prior(model: LatentDecoder, texts: Texts, name: str, noise: Noise, above: Latents) -> Latent:
    """A draw of every site of a latent without an encoder."""
    if not model.latents[name].autoregressive:
        return model.prior(texts.context, name, above).sample(noise)
    every = texts.context.sites_of(name).mask
    held = torch.zeros(*every.shape, model.latents[name].dims, device=model.device)
    return model.sample_sites(texts.context, noise, held=held, needed=every, name=name, above=above)
