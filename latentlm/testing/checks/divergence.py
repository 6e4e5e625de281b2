"""Densities and KL, on a decoder whose weights are three times as large, so that its posterior is far from its prior, and on a
posterior that leans (`Distribution.leaning`).

    KL(q || p) = E_q[log q(z) - log p(z)]       nats, site by site

Legend: B rows, S sites, E event dimensions, K samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from latentlm.interface import Context, Distribution, Latent, Noise
from latentlm.testing.comparing import TEXTS, UNMOVED, both, called, detached, pack, posteriors, priors
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, drawn, noise

_SAMPLES = 1024
_LISTED = 64  # values of a site that are summed over, where samples would not show the rare ones


def _context(subject: Subject) -> Context:
    with torch.no_grad():
        return subject.lively.context(pack(TEXTS, vocabulary=subject.config.backbone.vocabulary))


def _pairs(subject: Subject) -> Iterator[tuple[str, Distribution, Distribution, Tensor]]:
    """(what, q, p, site mask): posterior and leaning posterior of every latent against its prior."""
    model, context = subject.lively, _context(subject)
    latents = drawn(model, context)
    assert latents is not None
    known = posteriors(model, context, latents)
    for name, p in priors(model, context, latents).items():
        mask = context.sites_of(name).mask
        if name in known:
            yield called(model, "encoder", name), known[name], p, mask
        signs = torch.where(torch.arange(model.latents[name].dims) % 2 == 0, 1.0, -1.0).expand(p.shape)
        try:
            leaning = p.leaning(signs, 2.0)
        except NotImplementedError:
            continue
        yield f"a leaning posterior of {name} ({type(leaning).__name__})", leaning, p, mask


@check("divergence")
@torch.no_grad()
def kl_equals_monte_carlo(subject: Subject) -> None:
    """KL is the mean of log q - log p over samples of q, site by site."""
    need(subject.model.has_latents, "it has no latents")
    compared = 0
    for what, q, p, mask in _pairs(subject):
        if q.deterministic:
            continue
        rows, sites, _ = q.shape
        ratios, found = [], []
        for k in range(_SAMPLES // 64):
            index = torch.arange(rows).repeat_interleave(64)
            wide, prior = q.select(index), p.select(index)
            z = Latent(wide.sample(Noise.keyed(k, range(rows), samples=64)).value)
            ratios.append((wide.log_prob(z) - prior.log_prob(z)).double().view(rows, 64, sites))
            kl = wide.kl(prior, z)
            assert tuple(kl.shape[:2]) == (len(index), sites), f"KL of {what} has shape {tuple(kl.shape)}: never sum it"
            found.append(kl.double().sum(-1).view(rows, 64, sites))
        ratio, kl = torch.cat(ratios, 1), torch.cat(found, 1)  # (B, K, S)
        error = (ratio - kl).std(1) / ratio.shape[1] ** 0.5
        summed = _summed(q, p) if q.exact_kl and p.exact_kl else None
        if summed is not None:  # exactly: of a value that no sample shows, the error of the mean knows nothing
            ratio, error = summed[:, None], torch.zeros_like(error)
        deviation = (ratio.mean(1) - kl.mean(1)).abs() - 5 * error
        worst = deviation.masked_fill(~mask, -1.0)
        row, site = divmod(int(worst.argmax()), sites)
        assert float(worst.max()) < 1e-3, (
            f"KL of {what} at row {row}, site {site} is {float(kl.mean(1)[row, site]):.4f} nats, but the mean of log q - log p "
            f"over samples of q is {float(ratio.mean(1)[row, site]):.4f} +- {float(error[row, site]):.4f}"
        )
        if q.exact_kl and p.exact_kl:
            spread = kl.std(1).masked_fill(~mask, 0.0).max()
            assert float(spread) < 1e-4, f"KL of {what} claims to be exact (`exact_kl`), but depends on the latent it is given"
        compared += 1
    need(compared, "its posterior is a point mass, which has no density to compare with")


def _summed(q: Distribution, p: Distribution) -> Tensor | None:
    """The sum of q (log q - log p) over all values of each site, (B, S) float64; None where they are too many to list."""
    support = q.support()
    if support is None or len(support) > _LISTED:
        return None
    rows, sites, _ = q.shape
    total = torch.zeros(rows, sites, dtype=torch.float64)
    for value in support:
        z = Latent(value.expand(rows, sites, -1))
        log_q = q.log_prob(z).double()
        total += torch.where(log_q.isinf(), 0.0, log_q.exp() * (log_q - p.log_prob(z).double()))
    return total


@check("divergence")
@torch.no_grad()
def kl_not_negative(subject: Subject) -> None:
    """KL is never below zero where both sides say that it is exact; of a point mass too."""
    need(subject.model.has_latents, "it has no latents")
    compared = 0
    for what, q, p, mask in _pairs(subject):
        if not (q.exact_kl and p.exact_kl and p.normalised):
            continue
        kl = q.kl(p, Latent(q.sample(noise(q.shape[0])).value))
        assert float(kl[mask].min()) > -UNMOVED, f"KL of {what} falls to {float(kl[mask].min()):.2e} nats"
        compared += 1
    need(compared, "its KL is estimated from samples, which may be negative")


@check("divergence")
@torch.no_grad()
def kl_zero_at_prior(subject: Subject) -> None:
    """KL of the prior to itself is zero."""
    model = subject.lively
    need(model.has_latents, "it has no latents")
    context = _context(subject)
    latents = detached(model.sample_prior(context, noise(2)))
    compared = 0
    for name, p in priors(model, context, latents).items():
        if p.deterministic:
            continue
        kl = p.kl(p, Latent(p.sample(noise(2, seed=1)).value))[context.sites_of(name).mask]
        worst = float(kl.abs().max())
        assert worst < UNMOVED, f"KL of {called(model, 'prior', name)} to itself is {worst:.2e} nats"
        compared += 1
    need(compared, "its prior is a point mass")


@check("divergence")
@torch.no_grad()
def samples_follow_density(subject: Subject) -> None:
    """Samples of posterior and prior have the density that `log_prob` says: E_q[r(z) / q(z)] = 1 for a density r."""
    need(subject.model.has_latents, "it has no latents")
    model, context = subject.lively, _context(subject)
    latents = drawn(model, context)
    assert latents is not None
    compared = 0
    for (latent, name), q in both(model, context, latents).items():
        if q.deterministic:
            continue
        mask = context.sites_of(latent).mask
        rows, sites, _ = q.shape
        index = torch.arange(rows).repeat_interleave(_SAMPLES)
        wide = q.select(index)
        z = Latent(wide.sample(Noise.keyed(2, range(rows), samples=_SAMPLES)).value)
        if q.normalised:  # else the constants of the two differ
            log_q = wide.log_prob(z).double()
            # r is q sharpened, so that the ratio is bounded.
            ratio = (wide.tempered(0.8).log_prob(z).double() - log_q).exp().view(rows, _SAMPLES, sites)
            error = ratio.std(1) / _SAMPLES**0.5
            off = ((ratio.mean(1) - 1).abs() - 5 * error).masked_fill(~mask, -1.0)
            assert float(off.max()) < 1e-3, (
                f"samples of {name} do not follow its log_prob: the mean of r / q is "
                f"{float(ratio.mean(1).view(-1)[off.argmax()]):.3f}, not 1"
            )
        _values_as_likely_as_said(q, z.value.view(rows, _SAMPLES, sites, -1), mask, name)
        compared += 1
    need(compared, "its latents are point masses")


def _values_as_likely_as_said(q: Distribution, drawn_values: Tensor, mask: Tensor, name: str) -> None:
    """Each value of a finite support is drawn as often as `log_prob` says, within 5.5 standard errors."""
    support = q.support()
    if support is None or len(support) > 64:
        return
    rows, sites, _ = q.shape
    count = drawn_values.shape[1]
    points = support.to(drawn_values)
    log_chances = torch.stack([q.log_prob(Latent(point.expand(rows, sites, -1))).double() for point in points])
    chances = log_chances.exp() if q.normalised else log_chances.softmax(0)
    for point, chance in zip(points, chances, strict=True):
        share = (drawn_values == point).all(-1).double().mean(1)  # (B, S)
        error = (chance * (1 - chance) / count).sqrt() + 1.0 / count
        off = ((share - chance).abs() / error).masked_fill(~mask, 0.0)
        assert float(off.max()) < 5.5, (
            f"{name} draws the value {point.tolist()} with frequency {float(share.view(-1)[off.argmax()]):.3f}, but "
            f"log_prob says {float(chance.view(-1)[off.argmax()]):.3f}"
        )
