"""What the latents of a decoder carry, to be reported beside its scores.

    KL                    mean over texts of KL(q(z|x) || p(z)), in bits per token, and its curve over the sites of a text
    cross-entropy         -log p(x | z) in nats per token under z from the posterior, the prior, all zeros, and the posterior of
                          another place in the data. The first is not a likelihood: its z has seen the targets
    active units          units whose posterior mean moves with the data: variance above 0.01 (Burda et al. 2016, section 5.2)
    mutual information    between a site's latent and its text, E log q(z|x) / q(z) with q(z) the mean posterior over the sites
                          at hand (Hoffman & Johnson 2016), which it equals E KL minus the KL of q(z) where sites share a prior
    persistence           correlation of a unit's posterior mean between neighbouring sites
    ablation              rise of the posterior cross-entropy when one unit is drawn from the prior instead

Run: ``diagnose(model, texts)``, texts being token lists that begin with end-of-text; the first window of each counts.

Legend: B texts, S sites, E event dimensions (units), N sites pooled over the texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from latentlm.config import checking
from latentlm.config.checking import several, whole
from latentlm.errors import UserError
from latentlm.interface import Distribution, Latent, LatentDecoder, Latents, Noise
from latentlm.likelihood.nats import path_likelihood
from latentlm.likelihood.paths import draw_paths
from latentlm.likelihood.scoring import token_ids, windows
from latentlm.likelihood.texts import Texts

ACTIVE_VARIANCE = 0.01
_POOL = 2048
"""Sites that the mutual information compares pairwise; it cannot exceed log2 of their number."""
_PAIRS = 2**16
"""... of which so many at a time."""


@dataclass(frozen=True)
class Diagnostics:
    """See the module's docstring. Empty or None where a decoder has no such thing."""

    tokens: int
    kl_bits_per_token: float = 0.0
    kl_curve: list[float] = field(default_factory=list)
    """Bits at site 0, 1, ... of a text."""
    cross_entropy: dict[str, float] = field(default_factory=dict)
    """Nats per token under "posterior", "prior", "constant", "shuffled"; only "exact" without latents."""
    active_units: int | None = None
    variances: list[float] = field(default_factory=list)
    """Of the posterior mean of each unit over the data."""
    mutual_information_bits: float | None = None
    """Bits per site."""
    persistence: list[float] = field(default_factory=list)
    """Of each unit, -1 to 1."""
    ablation: list[float] = field(default_factory=list)
    """Nats per token for each unit; empty unless asked for."""
    latents: dict[str, Diagnostics] = field(default_factory=dict)
    """Of each of several latents: everything above is then empty but tokens, the KL of all together, and the cross-entropy with
    all of them exchanged; a latent's own cross-entropies are those with it alone exchanged."""


@torch.no_grad()
def diagnose(
    model: LatentDecoder,
    texts: Sequence[Sequence[int]],
    *,
    seed: int = 0,
    batch_size: int = 16,
    ablate: bool = False,
) -> Diagnostics:
    """Diagnose a model on texts (lists of at least two tokens), one latent sample each. Raises UserError without texts."""
    checking.model(model)
    batch_size, seed = whole("batch_size", batch_size, least=1), whole("seed", seed, least=None)
    texts = several("texts", texts, of="texts, each a list of tokens")
    if not len(texts) or any(len(several("a text", text, of="tokens")) < 2 for text in texts):
        raise UserError("Diagnostics need texts of at least two tokens: end-of-text and one more.")
    firsts = [windows(token_ids(model, text), model.config.backbone.context)[0] for text in texts]
    tally = _Tally()
    training = model.training
    model.eval()
    for start in range(0, len(firsts), batch_size):
        batch = firsts[start : start + batch_size]
        noise = Noise.keyed(seed, [("diagnose", start + row) for row in range(len(batch))])
        tally.add(model, batch, noise, ablate=ablate)
    model.train(training)
    return tally.result(model.has_latents, seed)


class _Tally:
    """Sums over batches."""

    def __init__(self) -> None:
        self.tokens = 0
        self.nats: dict[str, float] = {}
        self.units: dict[str, _Units] = {}

    def add(self, model: LatentDecoder, batch: list[list[int]], noise: Noise, *, ablate: bool) -> None:
        """One batch of texts."""
        texts = Texts.of(model, batch, [1] * len(batch))
        self.tokens += int(texts.mask.sum())
        if not model.has_latents:
            _count(self.nats, model, texts, "exact", None)
            return
        context = texts.context
        prior = draw_paths(model, context, texts.lengths, noise, target="prior", proposal="target").latents
        drawn = model.infer(context, noise) if model.has_encoder else prior
        sources = {"posterior": Latents({}), "prior": prior, "constant": Latents({}), "shuffled": Latents({})}
        for name in model.latents:
            real = context.sites_of(name).mask
            value = drawn[name].value * real[..., None]
            pooled = value[real]  # (N, E)
            shuffled = value.clone()
            shuffled[real] = pooled.roll(len(pooled) // 2, dims=0)
            made = {"posterior": value, "constant": torch.zeros_like(value), "shuffled": shuffled}
            sources |= {source: sources[source].plus(name, Latent(one)) for source, one in made.items()}
        for source, latents in sources.items():
            _count(self.nats, model, texts, source, latents)
        for name in model.latents:
            units = self.units.setdefault(name, _Units())
            units.add(model, texts, name, sources["posterior"])
            if len(model.latents) > 1:
                for source, latents in sources.items():
                    _count(units.nats, model, texts, source, sources["posterior"].plus(name, latents[name]))
            if ablate:
                units.ablate(model, texts, name, sources["posterior"], prior)

    def result(self, has_latents: bool, seed: int) -> Diagnostics:
        """Everything, averaged."""
        cross_entropy = {name: nats / self.tokens for name, nats in self.nats.items()}
        if not has_latents:
            return Diagnostics(tokens=self.tokens, cross_entropy=cross_entropy)
        if len(self.units) == 1:
            return next(iter(self.units.values())).result(self.tokens, cross_entropy, seed)
        each = {
            name: units.result(self.tokens, {source: nats / self.tokens for source, nats in units.nats.items()}, seed)
            for name, units in self.units.items()
        }
        total = sum(own.kl_bits_per_token for own in each.values())
        return Diagnostics(tokens=self.tokens, kl_bits_per_token=total, cross_entropy=cross_entropy, latents=each)


def _count(
    nats: dict[str, float], model: LatentDecoder, texts: Texts, source: str, latents: Latents | None
) -> None:
    """Add the nats of all targets under these latents."""
    found, _ = path_likelihood(model, texts, latents, greedy=False)
    nats[source] = nats.get(source, 0.0) - float(found.sum())


class _Units:
    """Of one latent."""

    def __init__(self) -> None:
        self.nats: dict[str, float] = {}
        self.ablated: dict[str, float] = {}
        self.kl: list[Tensor] = []  # (B, S) bits, NaN where there is no site
        self.means: list[Tensor] = []  # (N, E)
        self.neighbours: list[tuple[Tensor, Tensor]] = []  # (N', E) twice
        self.device = torch.device("cpu")  # of the model, once it is met
        self.posteriors: list[Distribution] = []  # (N, 1, E) each, on the CPU

    def add(self, model: LatentDecoder, texts: Texts, name: str, latents: Latents) -> None:
        """One batch, whose latents were drawn from their posteriors."""
        context, real = texts.context, texts.context.sites_of(name).mask
        p = model.prior(context, name, latents)
        posterior = model.posterior(context, name, latents) if model.latents[name].has_encoder else p
        kl = posterior.kl(p, latents[name]).sum(-1) / math.log(2)
        kl = kl if p.normalised else torch.full_like(kl, torch.nan)
        self.kl.append(torch.where(real, kl, torch.nan).cpu())
        self._moments(posterior, real)

    def ablate(self, model: LatentDecoder, texts: Texts, name: str, latents: Latents, prior: Latents) -> None:
        """Nats with one unit at a time from the prior."""
        for unit in range(model.latents[name].dims):
            mixed = latents[name].value.clone()
            mixed[..., unit] = prior[name].value[..., unit]
            _count(self.ablated, model, texts, str(unit), latents.plus(name, Latent(mixed)))

    def _moments(self, posterior: Distribution, real: Tensor) -> None:
        """Posteriors, where they can tell each other's latents apart, and their means, where the family has them."""
        if posterior.parameters and posterior.normalised and not posterior.deterministic:
            self.device = real.device
            self.posteriors.append(posterior.mapped(lambda parameter: parameter[real][:, None].cpu()))
        mean = posterior.expected()
        if mean is None:
            return
        self.means.append(mean[real].double().cpu())
        both = real[:, 1:] & real[:, :-1]
        self.neighbours.append((mean[:, :-1][both].double().cpu(), mean[:, 1:][both].double().cpu()))

    def result(self, tokens: int, cross_entropy: dict[str, float], seed: int) -> Diagnostics:
        """Everything, averaged."""
        longest = max(part.shape[1] for part in self.kl)
        curves = [torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=torch.nan) for part in self.kl]
        kl = torch.cat(curves).double()  # (texts, S)
        found = Diagnostics(
            tokens=tokens,
            kl_bits_per_token=float(kl.nansum()) / tokens if not bool(kl.isnan().all()) else math.nan,
            kl_curve=kl.nanmean(0).tolist(),
            cross_entropy=cross_entropy,
            mutual_information_bits=_mutual_information(self._pool(), seed) if self.posteriors else None,
            ablation=[nats / tokens - cross_entropy["posterior"] for nats in self.ablated.values()],
        )
        if not self.means:
            return found
        variances = torch.cat(self.means).var(0, unbiased=False)
        return replace(
            found,
            active_units=int((variances > ACTIVE_VARIANCE).sum()),
            variances=variances.tolist(),
            persistence=_correlations(*(torch.cat(part) for part in zip(*self.neighbours, strict=True))),
        )

    def _pool(self) -> list[Distribution]:
        """At most `_POOL` posteriors, evenly spread over the data."""
        stride = -(-sum(posterior.shape[0] for posterior in self.posteriors) // _POOL)
        pool, before = [], 0
        for posterior in self.posteriors:
            rows = torch.arange(-before % stride, posterior.shape[0], stride)
            pool.append(posterior.select(rows).mapped(lambda parameter: parameter.to(self.device)))
            before += posterior.shape[0]
        return pool


def _mutual_information(pool: Sequence[Distribution], seed: int) -> float:
    """Mean of log2 q_i(z_i) / mean_j q_j(z_i) over posteriors of one site each, z_i ~ q_i; bits."""
    count = sum(posterior.shape[0] for posterior in pool)
    noise = Noise.keyed(seed, [("mutual information", row) for row in range(count)])
    drawn: list[Tensor] = []
    for posterior in pool:
        before = sum(map(len, drawn))
        drawn.append(posterior.sample(noise.select(range(before, before + posterior.shape[0]))).value)
    value = torch.cat(drawn)[:, 0]  # (N, E)
    blocks = [
        _log_probs(posterior.select(rows), value)
        for posterior in pool
        for rows in torch.arange(posterior.shape[0], device=value.device).split(max(1, _PAIRS // count))
    ]
    pairs = torch.cat(blocks)  # (N, N): log q_j(z_i) at j, i
    gain = pairs.diagonal() - (pairs.logsumexp(0) - math.log(count))
    return float(gain.mean()) / math.log(2)


def _log_probs(posteriors: Distribution, value: Tensor) -> Tensor:
    """log q_j(z_i) at j, i of posteriors (n, 1, E) and values (N, E): (n, N) float64. Each posterior stands at N sites, without
    a copy of its parameters."""
    count = len(value)
    wide = posteriors.mapped(lambda parameter: parameter.expand(-1, count, *parameter.shape[2:]))
    return wide.log_prob(Latent(value.expand(posteriors.shape[0], -1, -1))).double().cpu()


def _correlations(first: Tensor, second: Tensor) -> list[float]:
    """Correlation of each column of (N, E) with its neighbour's; 0 where a unit does not move."""
    if len(first) < 2:
        return [0.0] * first.shape[-1]
    a, b = first - first.mean(0), second - second.mean(0)
    scale = (a.square().mean(0) * b.square().mean(0)).sqrt()
    return torch.where(scale > 1e-12, (a * b).mean(0) / scale.clamp(min=1e-12), 0.0).tolist()
