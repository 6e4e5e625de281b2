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


def supports(model: LatentDecoder, request: Request, how: How) -> dict[str, Tensor] | None:
    """Latent -> (N, E), all values of a site, where scores by `auto` may be exact; they are the same for every request. None
    where those of some latent cannot be listed, or are more than the samples allowed."""
    if how.method != "auto" or not model.has_latents:
        return None
    context, found, latents = Texts.of(model, [request.tokens], [request.given]).context, dict[str, Tensor](), Latents({})
    for name, latent in model.latents.items():
        value = Latent(torch.zeros(1, context.sites_of(name).mask.shape[1], latent.dims, device=model.device))
        support = model.prior(context, name, latents.plus(name, value)).support()
        if support is None or len(support) > how.most:
            return None
        found[name], latents = support, latents.plus(name, value)
    return found


def configurations(model: LatentDecoder, request: Request, how: How, values: dict[str, Tensor] | None) -> int | None:
    """M of a request, given `supports`; None where it is more than the samples allowed."""
    if values is None:
        return None
    each = {name: count_sites(model.latents[name].granularity, request.tokens[:-1]) for name in values}
    if sum(each[name] * math.log2(len(support)) for name, support in values.items()) > math.log2(how.most) + 1e-9:
        return None  # in logarithms: the number itself may have no end
    return math.prod(len(support) ** each[name] for name, support in values.items())


def enumerated(model: LatentDecoder, request: Request, how: How, values: dict[str, Tensor] | None) -> Score | None:
    """The exact score of a request, given `supports`; None where there are too many configurations, or an encoder has other
    values than the prior, or is a point mass. Targets are greedy as elsewhere (`weights`): of what all predict together."""
    if values is None or configurations(model, request, how, values) is None:
        return None
    texts = Texts.of(model, [request.tokens], [request.given])
    check_normalised(model, texts.context)
    found = classify(model, texts.context, texts.lengths, target=request.target, last_latent=how.last_latent)
    places = [(name, site) for name in values for site in range(found[name].real.shape[1])]
    axes = [torch.arange(len(values[name]), device=model.device) for name, _ in places]
    index = torch.cartesian_prod(*axes).view(-1, len(places))  # (M, sites of all latents)
    latents, log_r = Latents({}), torch.zeros(len(index), dtype=torch.float64, device=model.device)
    for name, support in values.items():
        own = index[:, [place for place, (owner, _) in enumerate(places) if owner == name]]  # (M, S)
        latent = Latent(support[own].float())  # (M, S, E)
        each = _reference(model, texts, name, found[name], latents, latent, support)
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


def _reference(
    model: LatentDecoder, texts: Texts, name: str, sites: Sites, above: Latents, latent: Latent, support: Tensor
) -> Tensor | None:
    """(M,) nats, log r of one latent's sites. None where its encoder may say something else than these values."""
    log_r = model.prior(texts.context, name, above.plus(name, latent)).log_prob(latent).double()
    if bool(sites.encoded.any()):
        encoder: Distribution = model.posterior(texts.context.before(texts.lengths), name, above)
        said = None if encoder.deterministic else encoder.support()
        if said is None or not torch.equal(said, support):
            return None
        rows = torch.zeros(len(latent.value), dtype=torch.long, device=model.device)
        encoder = encoder.select(rows) if encoder.shape[0] == 1 else encoder
        log_r = torch.where(sites.encoded, encoder.log_prob(latent).double(), log_r)
    return log_r.masked_fill(~sites.real, 0.0).sum(-1)
