"""Better proposals for a document's vector: the encoder's posterior, moved a few steps of gradient towards what explains the
text.

    q*  =  minimise over the parameters of q, from the encoder's on,  -E_q log p(targets | z) + KL(q || r)      (nats)

with r what the target draws the latent from: its prior, or q(z | context alone). Adam, a keyed draw of q per step
(semi-amortised inference: Kim et al. 2018, arXiv 1802.02550). Only the proposal is refined, never the target: an estimate is
as valid as before, since its weights divide by the density that the latents were drawn from, and it needs fewer samples.

Only the first latent is refined, and only where one site of it is open over all targets. Other latents are drawn once, from
their encoders where they have one, and what they cost given z counts.

Legend: B texts, S sites, E event dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from latentlm.interface import Distribution, Latent, LatentDecoder, Latents, Noise, noise_of
from latentlm.likelihood.nats import path_likelihood
from latentlm.likelihood.paths import LastLatent, Target, classify
from latentlm.likelihood.texts import Texts

RATE = 0.1
"""Of Adam, for every parameter of a posterior; it falls to zero over the steps by a cosine."""


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
    return posterior.mapped(lambda parameter: parameter.detach())


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
