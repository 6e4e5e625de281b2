"""Likelihoods without estimators: sums over every value of discrete latents, integrals over a grid for up to 2 real dimensions,
and products of these where a decoder has several latents, or a site several families.

    p(y | c) = sum over z^1 .. z^N of prod_n prod_s d(z^n_s | ..., z above) p(y | c, z)

d being q(. | c, z above) at the sites that the context begins (`generation`) and the prior elsewhere. Every z^n runs over the
product of its sites' values; a real dimension over a grid. Written from the definitions alone and apart from
`latentlm.likelihood`, whose index arithmetic they are there to check: the posterior of a context comes from a separate pass
over the context, never from hiding the rest.

Legend: K values of all latents together, N values of one site, S sites, E event dimensions, T inputs, n tokens, m of them
given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import log, prod
from typing import Literal

import torch
from torch import Tensor

from latentlm.interface import Batch, Context, Distribution, Latent, LatentDecoder, Latents, Noise, Product, by_name
from latentlm.testing.comparing import before

LastLatent = Literal["posterior", "prior"]

_MOST = 2**16
_MOST_REAL = 2
_GRID = (-7.0, 7.0, 141)
_MASS = 1e-3
"""A grid that misses more of a prior's probability than this does not fit it."""


@dataclass(frozen=True)
class _Axis:
    """The values that one site of a latent takes."""

    values: Tensor
    """(N, E)."""
    real: int
    """Real dimensions among them, each on a grid."""

    @property
    def log_cell(self) -> float:
        """Log of the volume that a value stands for."""
        return self.real * log((_GRID[1] - _GRID[0]) / (_GRID[2] - 1))


@torch.no_grad()
def enumeration_limit(model: LatentDecoder, given: Sequence[int], continuation: Sequence[int]) -> str | None:
    """Why the latents of this text cannot all be summed over; None where they can."""
    if not model.has_latents:
        return "it has no latents"
    context = _context(model, given, continuation)
    sites = {name: context.sites_of(name).mask.shape[1] for name in model.latents}
    real = {name: sites[name] * _real_dimensions(p) for name, p in _priors(model, context).items()}
    if sum(real.values()) > _MOST_REAL:
        listed = ", ".join(f"{count} of {name}" for name, count in real.items() if count)
        return f"quadrature covers at most {_MOST_REAL} real dimensions, not {listed} (dimensions times sites)"
    axes = _axes(model, context)
    count = prod(len(axes[name].values) ** sites[name] for name in axes)
    if count > _MOST:
        listed = ", ".join(f"{len(axes[name].values)}^{sites[name]} of {name}" for name in axes)
        return f"{count} latent values ({listed}) are too many to enumerate"
    for name, p in _priors(model, context).items():
        if p.normalised and (off := _missed(p, axes[name])) > _MASS:
            return (
                f"the prior of {name} ({type(p).__name__}) has probability {1 - off:.3f} on the values that the kit sums over: "
                "write `support` where it is discrete; real numbers have to lie within -7 and 7, on a scale of 0.1 and more"
            )
        if axes[name].real and model.latents[name].has_encoder:
            q = model.posterior(context, name, before(model, _zeros(model, context), name))
            if q.deterministic:
                return f"the posterior of {name} is a point among real numbers, which no grid meets"
            if (off := _missed(q, axes[name])) > _MASS:
                return (
                    f"the posterior of {name} ({type(q).__name__}) has probability {1 - off:.3f} on the grid from -7 to 7 that "
                    "the kit sums over: keep it near the prior at initialisation, on a scale of 0.1 and more"
                )
    return None


def count_values(model: LatentDecoder, given: Sequence[int], continuation: Sequence[int]) -> int:
    """How many latent values the sum over a text runs over."""
    context = _context(model, given, continuation)
    axes = _axes(model, context)
    return prod(len(axes[name].values) ** context.sites_of(name).mask.shape[1] for name in axes)


@torch.no_grad()
def latent_values(model: LatentDecoder, context: Context) -> tuple[Latents, float]:
    """All values of the latents together, (K, S, E) each, and the log of the volume that each stands for."""
    axes = _axes(model, context)
    sites = {name: context.sites_of(name).mask.shape[1] for name in axes}
    alone, log_cell = {}, 0.0
    for name, axis in axes.items():
        index = torch.cartesian_prod(*[torch.arange(len(axis.values))] * sites[name]).view(-1, sites[name])
        alone[name] = axis.values[index]  # (N^S, S, E)
        log_cell += sites[name] * axis.log_cell
    count = prod(len(values) for values in alone.values())
    assert count <= _MOST, f"{count} values are too many to enumerate; use a shorter text or fewer values per site"
    rows = torch.cartesian_prod(*[torch.arange(len(values)) for values in alone.values()]).view(count, -1)  # (K, latents)
    return Latents({name: Latent(alone[name][rows[:, number]]) for number, name in enumerate(alone)}), log_cell


@torch.no_grad()
def exact_log_likelihood(
    model: LatentDecoder,
    given: Sequence[int],
    continuation: Sequence[int],
    *,
    target: Literal["generation", "prior"],
    last_latent: LastLatent | Mapping[str, LastLatent] = "posterior",
) -> float:
    """log p(continuation | given), nats: context sites from the posterior on the context (`generation`) or from the prior."""
    context = _context(model, given, continuation)
    values, cell = latent_values(model, context)
    alone = model.context(Batch.of([list(given)], given=[len(given)]))
    last: dict[str, LastLatent] = by_name(last_latent, list(model.latents), default="posterior", what="last_latent")
    total = _log_likelihood(model, context, values, given, continuation)
    for name, latent in values.items():
        log_density = _log_density(model.prior(context, name, values), latent.value)  # (K, S)
        if target == "generation" and model.latents[name].has_encoder:
            seen = alone.sites_of(name).mask.shape[1]
            above = {other: alone.sites_of(other).mask.shape[1] for other in before(model, values, name)}
            known = Latents({other: Latent(values[other].value[:, :count]) for other, count in above.items()})
            encoded = _log_density(model.posterior(alone, name, known), latent.value[:, :seen])
            keep = seen - (last[name] == "prior")
            log_density[:, :keep] = encoded[:, :keep]
        total = total + log_density.sum(-1)
    return float(total.logsumexp(0)) + cell


@torch.no_grad()
def exact_elbo(model: LatentDecoder, given: Sequence[int], continuation: Sequence[int]) -> float:
    """E_q log p(continuation | given, z) - KL(q || p), nats, q having seen all inputs. Sites that condition given tokens alone
    are taken from the prior, under which they cost nothing; so is every site where one token continues, and a latent without an
    encoder."""
    context = _context(model, given, continuation)
    values, cell = latent_values(model, context)
    weights = torch.full((values.rows,), cell, dtype=torch.float64)
    cost = torch.zeros_like(weights)
    for name, latent in values.items():
        log_p = _log_density(model.prior(context, name, values), latent.value)  # (K, S)
        first = log_p.shape[1]
        log_q = log_p
        if model.latents[name].has_encoder and len(continuation) > 1:
            log_q = _log_density(model.posterior(context, name, before(model, values, name)), latent.value)
            first = int(context.sites_of(name).site_of[0, len(given) - 1])
        weights = weights + log_p[:, :first].sum(-1) + log_q[:, first:].sum(-1)
        cost = cost + (log_q - log_p)[:, first:].sum(-1)
    likelihood = _log_likelihood(model, context, values, given, continuation)
    terms = weights.exp() * (likelihood - cost)
    return float(terms.masked_fill(weights == float("-inf"), 0.0).sum())  # a point mass leaves values that never occur


def _log_density(q: Distribution, values: Tensor) -> Tensor:
    """log q (K, S), float64, at values (K, S, E), of K rows or of one for all; of a point mass 0 at its value, else -inf."""
    rows = torch.zeros(len(values), dtype=torch.long)
    if q.deterministic:
        point = q.sample(Noise.keyed(0, range(q.shape[0]))).value.to(values)
        here = torch.isclose(point, values, rtol=0.0, atol=1e-5).all(-1)
        return torch.where(here, 0.0, -torch.inf).double()
    return (q if q.shape[0] == len(values) else q.select(rows)).log_prob(Latent(values)).double()


@torch.no_grad()
def _context(model: LatentDecoder, given: Sequence[int], continuation: Sequence[int]) -> Context:
    """The trunk's pass over all inputs."""
    return model.context(Batch.of([[*given, *continuation][:-1]], given=[len(given)]))


@torch.no_grad()
def _priors(model: LatentDecoder, context: Context) -> dict[str, Distribution]:
    """A prior of each latent, one row: for its family and what its values are."""
    return {name: model.prior(context, name, _zeros(model, context)) for name in model.latents}


def _zeros(model: LatentDecoder, context: Context) -> Latents:
    """A value of each latent, one row."""
    sites = {name: context.sites_of(name).mask.shape[1] for name in model.latents}
    return Latents({name: Latent(torch.zeros(1, sites[name], latent.dims)) for name, latent in model.latents.items()})


def _real_dimensions(p: Distribution) -> int:
    """Of one site."""
    if p.support() is not None:
        return 0
    if isinstance(p, Product):
        return sum(_real_dimensions(component) for component in p.components)
    return p.shape[2]


def _axes(model: LatentDecoder, context: Context) -> dict[str, _Axis]:
    """What one site of each latent runs over."""
    return {name: _axis(p) for name, p in _priors(model, context).items()}


def _axis(p: Distribution) -> _Axis:
    """All values of one site: its support, a grid for real numbers, and for a product of families all combinations of these."""
    support = p.support()
    if support is not None:
        return _Axis(support.cpu(), 0)
    if isinstance(p, Product):
        axes = [_axis(component) for component in p.components]
        index = torch.cartesian_prod(*[torch.arange(len(axis.values)) for axis in axes]).view(-1, len(axes))
        values = torch.cat([axis.values[index[:, number]].float() for number, axis in enumerate(axes)], dim=-1)
        return _Axis(values, sum(axis.real for axis in axes))
    grid = torch.linspace(*_GRID).tolist()
    return _Axis(torch.tensor(list(product(grid, repeat=p.shape[2]))), p.shape[2])


@torch.no_grad()
def _missed(p: Distribution, axis: _Axis) -> float:
    """The largest share of a site's probability that its values do not cover (or count twice)."""
    count, sites = len(axis.values), p.shape[1]
    wide = p.select(torch.zeros(count, dtype=torch.long))
    each = axis.values[:, None].expand(-1, sites, -1)
    mass = wide.log_prob(Latent(each)).double().logsumexp(0).add(axis.log_cell).exp()  # (S,)
    return float((mass - 1).abs().max())


def _log_likelihood(
    model: LatentDecoder, context: Context, values: Latents, given: Sequence[int], continuation: Sequence[int]
) -> Tensor:
    """log p(continuation | given, z) of each value: (K,) float64."""
    log_probs = model.logits(model.hidden(context, values)).double().log_softmax(-1)  # (K, T, V)
    places = range(len(given) - 1, len(given) + len(continuation) - 1)
    return torch.stack([log_probs[:, t, token] for t, token in zip(places, continuation, strict=True)]).sum(0)
