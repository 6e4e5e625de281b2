"""Exact likelihoods, where the latents of a text can be only so many things that all of them can be gone through: one latent of
ten bits for a document is 1,024 values, and

    log p(targets | given)  =  log sum over all z of  r(z) p(targets | given, z)

with r what the target draws the sites from (`paths`): q(z | context alone) or the prior. Every latent has to be discrete, with
values that it lists (`Distribution.values`). Nothing is drawn, so that there is no error to state.

Legend: M configurations of all sites of all latents, S sites, E event dimensions, N values of a site.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentlm.interface import Distribution, Latent, LatentDecoder, Latents, count_sites
from latentlm.likelihood.nats import path_likelihood
from latentlm.likelihood.paths import Sites, check_normalised, classify
from latentlm.likelihood.requests import How, Request
from latentlm.likelihood.results import EXACT, Score, exact_score
from latentlm.likelihood.texts import Texts


def enumerated(model: LatentDecoder, request: Request, how: How) -> Score | None:
    """The exact score of a request by `auto`; None where its latents can be more things than the samples allowed, or where some
    distribution lists no values. Targets are greedy as elsewhere (`weights`): of what all values predict together."""
    sites = {name: count_sites(latent.granularity, request.tokens[:-1]) for name, latent in model.latents.items()}
    if how.method != "auto" or not sites or sum(sites.values()) > math.log2(how.most):  # a site has two values at least
        return None
    texts = Texts.of(model, [request.tokens], [request.given])
    values = _values(model, texts, how.most)
    if values is None or math.prod(len(values[name]) ** count for name, count in sites.items()) > how.most:
        return None
    check_normalised(model, texts.context)
    found = classify(model, texts.context, texts.lengths, target=request.target, last_latent=how.last_latent)
    places = [(name, site) for name in values for site in range(sites[name])]
    axes = [torch.arange(len(values[name]), device=model.device) for name, _ in places]
    index = torch.cartesian_prod(*axes).view(-1, len(places))  # (M, sites of all latents)
    latents, log_r = Latents({}), torch.zeros(len(index), dtype=torch.float64, device=model.device)
    for name, support in values.items():
        own = index[:, [place for place, (owner, _) in enumerate(places) if owner == name]]  # (M, S)
        latent = Latent(support[own].float())  # (M, S, E)
        each = _reference(model, texts, name, found[name], latents, latent)
        if each is None:
            return None
        log_r, latents = log_r + each, latents.plus(name, latent)
    nats, chosen = path_likelihood(model, texts, latents, greedy=how.greedy, log_weights=log_r[None])
    tokens, skipped = len(request.tokens) - request.given, request.begins - request.given
    return exact_score(
        float((nats + log_r).logsumexp(-1)),
        tokens=tokens,
        method=EXACT,
        tolerance=request.tolerance,
        greedy=None if chosen is None else all(chosen[0, skipped:].tolist()),
    )


def _values(model: LatentDecoder, texts: Texts, most: int) -> dict[str, Tensor] | None:
    """Latent -> (N, E), all values of a site; None where those of some latent cannot be listed, or are more than `most`."""
    found, latents = dict[str, Tensor](), Latents({})
    for name, latent in model.latents.items():
        value = Latent(torch.zeros(1, texts.context.sites_of(name).mask.shape[1], latent.dims, device=model.device))
        support = model.prior(texts.context, name, latents.plus(name, value)).support()
        if support is None or len(support) > most:
            return None
        found[name], latents = support, latents.plus(name, value)
    return found


def _reference(
    model: LatentDecoder, texts: Texts, name: str, sites: Sites, above: Latents, latent: Latent
) -> Tensor | None:
    """(M,) nats, log r of one latent's sites. None where its encoder has no probabilities for values."""
    log_r = model.prior(texts.context, name, above.plus(name, latent)).log_prob(latent).double()
    if bool(sites.encoded.any()):
        encoder: Distribution = model.posterior(texts.context.before(texts.lengths), name, above)
        if encoder.support() is None:
            return None
        rows = torch.zeros(len(latent.value), dtype=torch.long, device=model.device)
        encoder = encoder.select(rows) if encoder.shape[0] == 1 else encoder
        log_r = torch.where(sites.encoded, encoder.log_prob(latent).double(), log_r)
    return log_r.masked_fill(~sites.real, 0.0).sum(-1)
