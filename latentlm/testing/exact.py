"""Likelihoods without estimators: sums over every value of discrete latents, integrals over a grid for up to 2 real dimensions.

Written from the definitions alone and apart from `latentlm.likelihood`, whose index arithmetic they are there to check: the
posterior of a context comes from a separate pass over the context, never from hiding the rest.

Legend: K latent values, S sites, E event dimensions, T inputs, n tokens, m of them given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import log
from typing import Literal

import torch
from torch import Tensor

from latentlm.interface import Batch, Context, Distribution, Latent, LatentDecoder, Noise

_MOST = 2**16
_GRID = (-7.0, 7.0, 141)


def enumeration_limit(model: LatentDecoder, given: Sequence[int], continuation: Sequence[int]) -> str | None:
    """Why the latents of this text cannot all be summed over; None where they can."""
    if not model.has_latents:
        return "it has no latents"
    context = _context(model, given, continuation)
    support = _support(model, context)
    if support is not None:
        count = len(support) ** context.sites
        return None if count <= _MOST else f"{count} latent values of {context.sites} sites are too many to enumerate"
    dims = context.sites * model.event_dims
    return None if dims <= 2 else f"quadrature covers at most 2 real dimensions, not the {dims} of {context.sites} sites"


def count_values(model: LatentDecoder, given: Sequence[int], continuation: Sequence[int]) -> int:
    """How many latent values the sum over a text runs over."""
    context = _context(model, given, continuation)
    support = _support(model, context)
    if support is not None:
        return int(len(support) ** context.sites)
    return int(_GRID[2] ** (context.sites * model.event_dims))


def latent_values(model: LatentDecoder, context: Context) -> tuple[Tensor, float]:
    """All values (K, S, E) of the latents, and the log of the volume that each stands for."""
    dims = context.sites * model.event_dims
    support = _support(model, context)
    if support is not None:
        count = len(support) ** context.sites
        assert count <= _MOST, f"{count} values are too many to enumerate; use a shorter text or fewer values per site"
        index = torch.cartesian_prod(*[torch.arange(len(support))] * context.sites).view(-1, context.sites)
        return support.cpu()[index], 0.0
    assert dims <= 2, f"quadrature covers at most 2 dimensions, not {dims}"
    axis = torch.linspace(*_GRID)
    points = torch.tensor(list(product(axis.tolist(), repeat=dims)))
    return points.view(-1, context.sites, model.event_dims), dims * log(float(axis[1] - axis[0]))


@torch.no_grad()
def exact_log_likelihood(
    model: LatentDecoder,
    given: Sequence[int],
    continuation: Sequence[int],
    *,
    target: Literal["generation", "prior"],
    last_latent: Literal["posterior", "prior"] = "posterior",
) -> float:
    """log p(continuation | given), nats: context sites from the posterior on the context (`generation`) or from the prior."""
    context, values, cell = _values(model, given, continuation)
    log_density = model.prior(context, Latent(values)).log_prob(Latent(values)).double()  # (K, S)
    if target == "generation" and model.has_encoder:
        alone = model.posterior(model.context(Batch.of([list(given)], given=[len(given)])))
        seen = alone.shape[1]
        encoded = _log_density(alone, values[:, :seen])
        keep = seen - (last_latent == "prior")
        log_density[:, :keep] = encoded[:, :keep]
    joint = _log_likelihood(model, context, values, given, continuation) + log_density.sum(-1)
    return float(joint.logsumexp(0)) + cell


@torch.no_grad()
def exact_elbo(model: LatentDecoder, given: Sequence[int], continuation: Sequence[int]) -> float:
    """E_q log p(continuation | given, z) - KL(q || p), nats, q having seen all inputs. Sites that condition given tokens alone
    are taken from the prior, under which they cost nothing; so is every site where one token continues."""
    context, values, cell = _values(model, given, continuation)
    log_q = _log_density(model.posterior(context), values)  # (K, S)
    log_p = model.prior(context, Latent(values)).log_prob(Latent(values)).double()
    first = int(context.site_of[0, len(given) - 1]) if len(continuation) > 1 else context.sites
    weights = log_p[:, :first].sum(-1) + log_q[:, first:].sum(-1) + cell
    cost = (log_q - log_p)[:, first:].sum(-1)
    likelihood = _log_likelihood(model, context, values, given, continuation)
    terms = weights.exp() * (likelihood - cost)
    return float(terms.masked_fill(weights == float("-inf"), 0.0).sum())  # a point mass leaves values that never occur


def _log_density(q: Distribution, values: Tensor) -> Tensor:
    """log q (K, S), float64, of one row's posterior at values (K, S, E); of a point mass 0 at its value and -inf elsewhere."""
    if q.deterministic:
        point = q.sample(Noise.keyed(0, [0])).value.to(values)
        here = torch.isclose(point, values, rtol=0.0, atol=1e-5).all(-1)
        return torch.where(here, 0.0, -torch.inf).double()
    return q.select(torch.zeros(len(values), dtype=torch.long)).log_prob(Latent(values)).double()


def _values(
    model: LatentDecoder, given: Sequence[int], continuation: Sequence[int]
) -> tuple[Context, Tensor, float]:
    """The trunk's pass over all inputs, every latent value, and its log volume."""
    context = _context(model, given, continuation)
    values, cell = latent_values(model, context)
    return context, values, cell


@torch.no_grad()
def _context(model: LatentDecoder, given: Sequence[int], continuation: Sequence[int]) -> Context:
    """The trunk's pass over all inputs."""
    return model.context(Batch.of([[*given, *continuation][:-1]], given=[len(given)]))


@torch.no_grad()
def _support(model: LatentDecoder, context: Context) -> Tensor | None:
    """The values that a site's prior can take, (N, E); None for real numbers."""
    return model.prior(context, Latent(torch.zeros(1, context.sites, model.event_dims))).support()


def _log_likelihood(
    model: LatentDecoder, context: Context, values: Tensor, given: Sequence[int], continuation: Sequence[int]
) -> Tensor:
    """log p(continuation | given, z) of each value: (K,) float64."""
    log_probs = model.logits(model.hidden(context, Latent(values))).double().log_softmax(-1)  # (K, T, V)
    places = range(len(given) - 1, len(given) + len(continuation) - 1)
    return torch.stack([log_probs[:, t, token] for t, token in zip(places, continuation, strict=True)]).sum(0)
