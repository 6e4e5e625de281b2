"""Latent paths: draw every site of every latent of a text, and say how much more often the target would have drawn them than
the proposal did.

Positions count from 0. A context of m tokens stands at row positions 0..m-1. Each latent sorts its own sites: a *context site*
conditions a position < m; every other site is a *later site*. Two targets r(z), products over the latents in order:

    generation   context sites ~ q(z^n | context alone, z above), later sites ~ p(z^n | tokens and sites so far, z above)
    prior        every site ~ p(z^n | tokens and sites so far, z above)

and two proposals g(z), likewise:

    target       r itself
    posterior    sites that r draws from the prior come from q(z^n | all inputs, z above) if they condition a position >= m-1,
                 which predicts a target; so do context sites that condition a position >= m. It has seen the targets but the
                 last (of one target it has seen nothing, and nothing comes from it); the ratio r / q over exactly those sites
                 makes up for that. All other sites come from r: what the posterior has learnt about them from the context is
                 not what the target asks for. A latent whose posterior is a point mass comes from r; the others do not.

log r and log g are summed over all latents and sites. With a *defensive mixture*, a share of the paths comes from r, the others
from g (Hesterberg 1995). Which do is fixed: path k, counted from 0, is one of r's where floor((k+1) eps) > floor(k eps), so
that every run of paths holds its share, where a coin for each path would leave some texts without any. Whole paths: site by
site it would bound nothing useful.

Legend: B rows, T tokens, S sites, E event dimensions, K samples, R = B*K latent rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from latentlm.errors import UserError
from latentlm.interface import (
    PADDING,
    Context,
    Distribution,
    Latent,
    LatentDecoder,
    Latents,
    Noise,
    SiteMap,
    Stems,
    by_name,
    noise_of,
    site_mask,
)

Target = Literal["generation", "prior"]
Proposal = Literal["posterior", "target"]
LastLatent = Literal["posterior", "prior"]

_ROUNDING = 3e-6
"""Logits differ by about 1e-5 between batch shapes, so probabilities of bits by a quarter of that."""


@dataclass(frozen=True)
class Sites:
    """Which distribution draws each site of a latent; (B, S) bool."""

    encoded: Tensor
    """The target draws it from q(z | context alone); it draws the other real sites from the prior."""
    proposed: Tensor
    """A posterior proposal may draw it from q(z | all inputs)."""
    real: Tensor
    """It conditions at least one position."""

    def select(self, rows: Tensor) -> Sites:
        """The given rows."""
        return Sites(self.encoded[rows], self.proposed[rows], self.real[rows])


def classify(
    model: LatentDecoder,
    context: Context,
    lengths: Tensor,
    *,
    target: Target,
    last_latent: LastLatent | Mapping[str, LastLatent],
) -> dict[str, Sites]:
    """Sort the sites of every latent, in contexts of lengths (B,) tokens. `last_latent` "prior" takes the site of the last
    context token from the prior."""
    last: dict[str, LastLatent] = by_name(last_latent, list(model.latents), default="posterior", what="last_latent")
    return {
        name: _classified(context, lengths, context.sites_of(name), target, last[name], has_encoder=latent.has_encoder)
        for name, latent in model.latents.items()
    }


def _classified(
    context: Context, lengths: Tensor, sites: SiteMap, target: Target, last_latent: LastLatent, *, has_encoder: bool
) -> Sites:
    """The sites of one latent."""
    index = torch.arange(context.tokens.shape[1], device=lengths.device)[None]

    def conditioning(hidden: Tensor) -> Tensor:
        """Sites that condition a real position which is not hidden (B, T): (B, S)."""
        return site_mask(sites.site_of, context.documents.masked_fill(hidden, PADDING), sites.mask.shape[1])

    continues = conditioning(index < lengths[:, None])
    predicts = conditioning(index < lengths[:, None] - 1)
    predicts &= ((context.documents >= 0).sum(1) > lengths)[:, None]  # of one target, the posterior has seen nothing
    encoded = conditioning(index >= lengths[:, None])
    if target == "prior" or not has_encoder:
        encoded = torch.zeros_like(encoded)
    elif last_latent == "prior":
        newest = sites.site_of.gather(1, (lengths - 1)[:, None])  # (B, 1)
        encoded = encoded & (torch.arange(encoded.shape[1], device=newest.device)[None] != newest)
    return Sites(encoded=encoded, proposed=torch.where(encoded, continues, predicts), real=sites.mask)


def alike(context: Context, sites: Mapping[str, Sites], stems: Stems) -> Stems | None:
    """The stems as far as the draws of every latent are the same for all their rows: up to the first position whose site a
    posterior may propose, which has seen the row's own targets. None where that leaves nothing."""
    index = torch.arange(context.tokens.shape[1], device=context.tokens.device)
    lengths = stems.lengths
    for name, own in sites.items():
        proposed = own.proposed.gather(1, context.sites_of(name).site_of)  # (B, T)
        lengths = torch.minimum(lengths, torch.where(proposed, index, len(index)).amin(1))
    found = stems.within(lengths)
    return found if bool(found.lengths.any()) else None


@dataclass(frozen=True)
class Paths:
    """K draws of the latents of each row."""

    latents: Latents
    """(R, S, E) each, zero at sites that condition nothing."""
    log_target: Tensor
    """(R,) float64 nats: log r over the sites that a posterior proposes; zero where none does."""
    log_proposal: Tensor
    """(R,) float64 nats: log g over the same sites, whichever of the two the path was drawn from."""
    near_ties: Tensor
    """(B,) long: bits that rounding can flip. ((R,) while the paths are made.)"""
    proposals: Mapping[str, Tensor]
    """Latent -> (B,) bool: some of its sites came from a posterior that has seen the targets."""

    @property
    def proposed(self) -> bool:
        """Some site came from such a posterior."""
        return any(bool(own.any()) for own in self.proposals.values())

    @property
    def latent(self) -> Latent:
        """Of the only latent."""
        return Latent(self.latents.value)


def draw_paths(
    model: LatentDecoder,
    context: Context,
    lengths: Tensor,
    noise: Noise,
    *,
    target: Target,
    proposal: Proposal,
    defensive: float = 0.0,
    first: int = 0,
    last_latent: LastLatent | Mapping[str, LastLatent] = "posterior",
    names: Sequence[str] | None = None,
    refined: Mapping[str, Distribution] | None = None,
    stems: Stems | None = None,
) -> Paths:
    """Draw latents for `context`, whose first `lengths` (B,) tokens are given; `noise` has R rows, the samples `first` and
    following of each text. `names`: the first few latents only (default: all). `refined`: distributions (B, S, E) that stand
    in the place of the posterior on all inputs as proposals. `stems`: rows with the same given tokens, encoded once."""
    sites = classify(model, context, lengths, target=target, last_latent=last_latent)
    walk = _Walk(model, context, lengths, noise, sites, names=list(model.latents) if names is None else list(names))
    walk.stems = stems
    walk.free.update({("posterior", name): proposal for name, proposal in (refined or {}).items()})
    paths = walk.paths(from_posterior=proposal == "posterior")
    samples = len(noise) // context.rows
    if paths.proposed:
        own = torch.tensor(from_target(defensive, first, first + samples), dtype=torch.long, device=walk.rows.device)
        if len(own):
            picked = (torch.arange(context.rows, device=own.device)[:, None] * samples + own - first).flatten()
            other = _Walk(
                model, context, lengths, noise.select(picked.tolist()), sites, names=walk.names, picked=(walk, picked)
            )
            paths = _exchanged(paths, other.paths(from_posterior=False), picked)
        paths = walk.weighted(paths)
    return replace(paths, near_ties=_per_row(paths.near_ties, samples))


def from_target(defensive: float, start: int, stop: int) -> list[int]:
    """Which of the paths start .. stop-1 of a text come from the target itself."""
    before = [math.floor(k * defensive + 1e-9) for k in range(start, stop + 1)]
    return [start + k for k in range(stop - start) if before[k + 1] > before[k]]


def mixture(log_proposal: Tensor, log_target: Tensor, share: float) -> Tensor:
    """log ((1 - share) g + share r), nats."""
    if share == 0:
        return log_proposal
    if share == 1:
        return log_target
    return torch.logaddexp(log_proposal + math.log1p(-share), log_target + math.log(share))


def _exchanged(paths: Paths, other: Paths, picked: Tensor) -> Paths:
    """Paths with the rows `picked` taken from others."""
    latents = {
        name: Latent(latent.value.index_copy(0, picked, other.latents[name].value)) for name, latent in paths.latents.items()
    }
    ties = paths.near_ties.index_copy(0, picked, other.near_ties)
    return replace(paths, latents=Latents(latents), near_ties=ties)


class _Walk:
    """Through the latents in order. `rows` (R',): the context row of each row of noise; by default K rows for each."""

    def __init__(
        self,
        model: LatentDecoder,
        context: Context,
        lengths: Tensor,
        noise: Noise,
        sites: dict[str, Sites],
        *,
        names: list[str],
        picked: tuple[_Walk, Tensor] | None = None,
    ) -> None:
        self.model, self.context, self.lengths, self.noise, self.sites = model, context, lengths, noise, sites
        each = torch.arange(context.rows, device=lengths.device)
        self.rows: Tensor = each.repeat_interleave(len(noise) // context.rows) if picked is None else picked[0].rows[picked[1]]
        self.whole = picked is None
        self.names = names
        # Posteriors that depend on no latent: they are made once per text, for picked rows too.
        self.free: dict[tuple[str, str], Distribution] = {} if picked is None else picked[0].free
        self.stems: Stems | None = None

    def paths(self, *, from_posterior: bool) -> Paths:
        """One path for each row of noise. Its densities are zero still; `near_ties` are those of each row of noise."""
        latents, ties = Latents({}), torch.zeros(len(self.noise), dtype=torch.long, device=self.rows.device)
        proposals: dict[str, Tensor] = {}
        for name in self.names:
            sites, own = self.sites[name], noise_of(self.noise, name, list(self.model.latents))
            posterior = self.posterior(name, latents) if from_posterior else None
            proposals[name] = sites.proposed.any(1) & (posterior is not None)
            wanted = sites.real if posterior is None else sites.real & ~sites.proposed
            value, more = self._reference(name, own, wanted, latents)
            ties = ties + more
            if posterior is not None:
                drawn, more = draw(posterior, own, sites.proposed[self.rows])  # (R', S, E)
                value, ties = value + drawn, ties + more
            latents = latents.plus(name, Latent(value))
        return Paths(latents, self._zeros(), self._zeros(), ties, proposals)

    def weighted(self, paths: Paths) -> Paths:
        """The paths with their densities."""
        log_target, log_proposal = self._zeros(), self._zeros()
        for name in self.names:
            above = paths.latents.before(name)
            posterior = self.posterior(name, above)
            if posterior is None:
                continue
            sites, latent = self.sites[name].select(self.rows), paths.latents[name]
            p = self.model.prior(self.context, name, above.plus(name, latent))
            log_r = p.log_prob(latent).double()  # (R, S)
            encoder = self.encoder(name, above)
            if encoder is not None:
                log_r = torch.where(sites.encoded, encoder.log_prob(latent).double(), log_r)
            log_target = log_target + log_r.masked_fill(~sites.proposed, 0.0).sum(-1)
            log_q = posterior.log_prob(latent).double()
            log_proposal = log_proposal + log_q.masked_fill(~sites.proposed, 0.0).sum(-1)
        return replace(paths, log_target=log_target, log_proposal=log_proposal)

    def posterior(self, name: str, above: Latents) -> Distribution | None:
        """q(z^n | all inputs, z above) for each row of noise; None where nothing comes from it: no encoder, no site that is
        proposed, or a point mass, which has no density to divide by."""
        if not self.model.latents[name].has_encoder or not bool(self.sites[name].proposed.any()):
            return None
        found = self._once("posterior", name, above, self._context(above))
        return None if found.deterministic else found

    def encoder(self, name: str, above: Latents) -> Distribution | None:
        """q(z^n | context alone, z above) for each row of noise; None where the target draws nothing from it."""
        if not bool(self.sites[name].encoded.any()):
            return None
        if self.stems is not None and not above and ("encoder", name) not in self.free:
            firsts, stem = self.stems.first.unique(return_inverse=True)
            found = self.model.posterior(self.context.select(firsts).before(self.lengths[firsts]), name)
            self.free["encoder", name] = found.select(stem)
        lengths = self.lengths if self._context(above) is self.context else self.lengths[self.rows]
        return self._once("encoder", name, above, self._context(above).before(lengths))

    def _once(self, kind: str, name: str, above: Latents, context: Context) -> Distribution:
        """A posterior for each row of noise. What depends on no latent has the rows of the texts, and is kept."""
        if (kind, name) not in self.free:
            found = self.model.posterior(context, name, above)
            if above and found.shape[0] == len(self.rows):
                return found
            self.free[kind, name] = found
        return self.free[kind, name].select(self.rows)

    def _context(self, above: Latents) -> Context:
        """With the texts' rows, but for picked rows below other latents: these are no whole number for each text."""
        return self.context if self.whole or not above else self.context.select(self.rows)

    def _reference(self, name: str, noise: Noise, wanted: Tensor, above: Latents) -> tuple[Tensor, Tensor]:
        """Draw the sites in `wanted` (B, S) from the target itself: (R', S, E), zero elsewhere, and near ties (R',)."""
        sites = self.sites[name]
        encoded = (sites.encoded & wanted)[self.rows]
        needed = (wanted & ~sites.encoded)[self.rows]
        held = torch.zeros(len(self.rows), wanted.shape[1], self.model.latents[name].dims, device=self.rows.device)
        ties = torch.zeros(len(self.rows), dtype=torch.long, device=self.rows.device)
        encoder = self.encoder(name, above)
        if encoder is not None:
            held, ties = draw(encoder, noise, encoded)
        if not bool(needed.any()):
            return held, ties
        stream = noise.stream("prior")
        if self.model.latents[name].autoregressive:
            wide = self.context.select(self.rows)
            drawn = self.model.sample_sites(wide, stream, held=held, needed=needed, name=name, above=above)
            return drawn.value, ties
        p = self.model.prior(self._context(above), name, above)
        more_value, more = draw(p if above else p.select(self.rows), stream, needed)
        return held + more_value, ties + more

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self.noise), dtype=torch.float64, device=self.rows.device)


@torch.no_grad()
def check_normalised(model: LatentDecoder, context: Context) -> None:
    """Raise UserError where the density of some prior is known up to a constant only: it makes no likelihood."""
    one = context.select(torch.zeros(1, dtype=torch.long, device=context.tokens.device))
    latents = Latents({})
    for name, latent in model.latents.items():
        value = torch.zeros(1, one.sites_of(name).mask.shape[1], latent.dims, device=one.tokens.device)
        latents = latents.plus(name, Latent(value))
        p = model.prior(one, name, latents)
        if not p.normalised:
            raise UserError(
                f"The prior of {name} ({type(p).__name__}) is not normalised: its density is known up to a constant only, so "
                "there is no likelihood to print. Generation and cross-entropy under the posterior work; for a likelihood, "
                "choose another prior."
            )


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
