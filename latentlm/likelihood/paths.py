"""Latent paths: draw every site of a text, and say how much more often the target would have drawn them than the proposal did.

Positions count from 0. A context of m tokens stands at row positions 0..m-1. A *context site* conditions a position < m; every
other site is a *later site*. Two targets r(z):

    generation   context sites ~ q(z | context alone), later sites ~ p(z | tokens so far, z of earlier sites)
    prior        every site ~ p(z | tokens so far, z of earlier sites)

and two proposals g(z):

    target       r itself
    posterior    sites that r draws from the prior come from q(z | all inputs) if they condition a position >= m-1, which
                 predicts a target; so do context sites that condition a position >= m. It has seen the targets but the
                 last (of one target it has seen nothing, and nothing comes from it); the ratio r / q over exactly
                 those sites makes up for that. All other sites come from r: what the posterior has learnt
                 about them from the context is not what the target asks for.

With a *defensive mixture*, a path comes from r with probability eps, from g otherwise; its ratio r / ((1-eps) g + eps r) is at
most 1/eps (Hesterberg 1995). The choice is made for whole paths: site by site it would bound nothing useful.

Legend: B rows, T tokens, S sites, E event dimensions, K samples, R = B*K latent rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentlm.interface import PADDING, Context, Distribution, Latent, LatentDecoder, Noise, site_mask

Target = Literal["generation", "prior"]
Proposal = Literal["posterior", "target"]
LastLatent = Literal["posterior", "prior"]

_ROUNDING = 3e-6
"""Logits differ by about 1e-5 between batch shapes, so probabilities of bits by a quarter of that."""


@dataclass(frozen=True)
class Sites:
    """Which distribution draws each site; (B, S) bool."""

    encoded: Tensor
    """The target draws it from q(z | context alone); it draws the other real sites from the prior."""
    proposed: Tensor
    """A posterior proposal may draw it from q(z | all inputs)."""
    real: Tensor
    """It conditions at least one position."""

    def select(self, rows: Tensor) -> Sites:
        """The given rows."""
        return Sites(self.encoded[rows], self.proposed[rows], self.real[rows])


def classify(context: Context, lengths: Tensor, *, target: Target, last_latent: LastLatent, has_encoder: bool) -> Sites:
    """Sort the sites of contexts of lengths (B,) tokens. `last_latent` "prior" takes the site of the last context token from
    the prior."""
    continues = _conditions_from(context, lengths)
    predicts = _conditions_from(context, lengths - 1)
    predicts &= ((context.documents >= 0).sum(1) > lengths)[:, None]  # of one target, the posterior has seen nothing
    encoded = context.before(lengths).site_mask
    if target == "prior" or not has_encoder:
        encoded = torch.zeros_like(encoded)
    elif last_latent == "prior":
        last = context.site_of.gather(1, (lengths - 1)[:, None])  # (B, 1)
        encoded = encoded & (torch.arange(context.sites, device=last.device)[None] != last)
    return Sites(encoded=encoded, proposed=torch.where(encoded, continues, predicts), real=context.site_mask)


def _conditions_from(context: Context, start: Tensor) -> Tensor:
    """Sites that condition a real position >= start (B,): (B, S) bool."""
    index = torch.arange(context.tokens.shape[1], device=start.device)
    documents = context.documents.masked_fill(index[None] < start[:, None], PADDING)
    return site_mask(context.site_of, documents, context.sites)


@dataclass(frozen=True)
class Paths:
    """K draws of the latents of each row."""

    latent: Latent
    """(R, S, E), zero at sites that condition nothing."""
    log_ratio: Tensor
    """(R,) float64 nats: log target - log proposal."""
    near_ties: Tensor
    """(B,) long: bits that rounding can flip."""


def draw_paths(
    model: LatentDecoder,
    context: Context,
    lengths: Tensor,
    noise: Noise,
    *,
    target: Target,
    proposal: Proposal,
    defensive: float = 0.0,
    last_latent: LastLatent = "posterior",
) -> Paths:
    """Draw latents for `context`, whose first `lengths` (B,) tokens are given; `noise` has R rows."""
    samples = len(noise) // context.rows
    rows = torch.arange(context.rows, device=lengths.device).repeat_interleave(samples)  # (R,)
    sites = classify(context, lengths, target=target, last_latent=last_latent, has_encoder=model.has_encoder)
    encoder = model.posterior(context.before(lengths)) if bool(sites.encoded.any()) else None
    posterior = None
    if proposal == "posterior" and model.has_encoder and bool(sites.proposed.any()):
        posterior = model.posterior(context)
    if posterior is None or posterior.deterministic:  # a point mass has no density to divide by
        value, ties = _reference(model, context, sites, encoder, rows, noise, sites.real)
        return Paths(Latent(value), torch.zeros(len(noise), dtype=torch.float64, device=rows.device), _per_row(ties, samples))

    wide = sites.select(rows)
    value, ties = _reference(model, context, sites, encoder, rows, noise, sites.real & ~sites.proposed)
    drawn, more = draw(posterior.select(rows), noise, wide.proposed)  # (R, S, E)
    value, ties = value + drawn, ties + more
    if defensive > 0:
        chosen = noise.stream("path").uniform(1, 1, device=rows.device)[:, 0, 0] < defensive
        picked = chosen.nonzero()[:, 0]
        if len(picked):
            own = noise.select(picked.tolist())
            drawn, more = _reference(model, context, sites, encoder, rows[picked], own, sites.real)
            value, ties = value.index_copy(0, picked, drawn), ties.index_copy(0, picked, more)
    latent = Latent(value)
    log_target = model.prior(context, latent).log_prob(latent).double()  # (R, S)
    if encoder is not None:
        log_target = torch.where(wide.encoded, encoder.select(rows).log_prob(latent).double(), log_target)
    log_target = (log_target.masked_fill(~wide.proposed, 0.0)).sum(-1)
    log_posterior = posterior.select(rows).log_prob(latent).double().masked_fill(~wide.proposed, 0.0).sum(-1)
    return Paths(latent, log_target - _mixture(log_posterior, log_target, defensive), _per_row(ties, samples))


def _mixture(log_posterior: Tensor, log_target: Tensor, defensive: float) -> Tensor:
    """log ((1 - eps) g + eps r)."""
    if defensive <= 0:
        return log_posterior
    return torch.logaddexp(log_posterior + math.log1p(-defensive), log_target + math.log(defensive))


def _reference(
    model: LatentDecoder,
    context: Context,
    sites: Sites,
    encoder: Distribution | None,
    rows: Tensor,
    noise: Noise,
    wanted: Tensor,
) -> tuple[Tensor, Tensor]:
    """Draw the sites in `wanted` (B, S) from the target itself, for context rows `rows` (R',): (R', S, E), zero elsewhere, and
    near ties (R',)."""
    encoded = (sites.encoded & wanted)[rows]
    needed = (wanted & ~sites.encoded)[rows]
    held = torch.zeros(len(rows), context.sites, model.event_dims, device=rows.device)
    ties = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    if encoder is not None:
        held, ties = draw(encoder.select(rows), noise, encoded)
    if not bool(needed.any()):
        return held, ties
    stream = noise.stream("prior")
    if _autoregressive(model):
        return model.sample_sites(context.select(rows), stream, held=held, needed=needed).value, ties
    drawn, more = draw(model.prior(context).select(rows), stream, needed)
    return held + drawn, ties + more


def _autoregressive(model: LatentDecoder) -> bool:
    """Whether a site's prior depends on earlier latents. A decoder that does not say is taken to (slower, never wrong)."""
    part = getattr(model, "prior_part", None)
    return bool(getattr(part, "autoregressive", True))


def draw(distribution: Distribution, noise: Noise, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """A sample (R, S, E), zero outside `wanted` (R, S), and the near ties in it (R,)."""
    value = torch.where(wanted[..., None], distribution.sample(noise).value, 0.0)
    near = distribution.near_ties(noise, _ROUNDING)
    if near is None:
        return value, torch.zeros(len(noise), dtype=torch.long, device=value.device)
    return value, (near * wanted).sum(1)


def _per_row(ties: Tensor, samples: int) -> Tensor:
    """Sum over the samples of each row: (R,) -> (B,)."""
    return ties.view(-1, samples).sum(-1)
