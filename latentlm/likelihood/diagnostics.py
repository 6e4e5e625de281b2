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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentlm.errors import UserError
from latentlm.interface import Bits, Codes, Distribution, Gaussian, Latent, LatentDecoder, Noise
from latentlm.likelihood.paths import draw_paths
from latentlm.likelihood.scoring import windows
from latentlm.likelihood.weights import Texts, path_likelihood

ACTIVE_VARIANCE = 0.01
_PARAMETERS: dict[type, Callable[[Any], tuple[Tensor, ...]]] = {
    Bits: lambda q: (q.logits,),
    Codes: lambda q: (q.log_probs,),
    Gaussian: lambda q: (q.mean, q.log_std),
}
"""What the families whose mutual information is known are made of."""
_POOL = 2048
"""Sites that the mutual information compares pairwise; it cannot exceed log2 of their number."""


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
    if not texts or any(len(text) < 2 for text in texts):
        raise UserError("Diagnostics need texts of at least two tokens: end-of-text and one more.")
    firsts = [windows(text, model.config.backbone.context)[0] for text in texts]
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
        self.ablated: list[float] = []
        self.kl: list[Tensor] = []  # (B, S) bits, NaN where there is no site
        self.means: list[Tensor] = []  # (N, E)
        self.neighbours: list[tuple[Tensor, Tensor]] = []  # (N', E) twice
        self.parameters: list[tuple[Tensor, ...]] = []  # of the posteriors, (N, E) each
        self.family: type[Distribution] | None = None

    def add(self, model: LatentDecoder, batch: list[list[int]], noise: Noise, *, ablate: bool) -> None:
        """One batch of texts."""
        texts = Texts.of(model, batch, [1] * len(batch))
        self.tokens += int(texts.mask.sum())
        if not model.has_latents:
            self._count(model, texts, "exact", None)
            return
        context, real = texts.context, texts.context.site_mask
        prior = draw_paths(model, context, texts.lengths, noise, target="prior", proposal="target").latent.value
        posterior = model.posterior(context) if model.has_encoder else model.prior(context, Latent(prior))
        value = posterior.sample(noise).value if model.has_encoder else prior
        value = value * real[..., None]
        pooled = value[real]  # (N, E)
        shuffled = value.clone()
        shuffled[real] = pooled.roll(len(pooled) // 2, dims=0)
        latents = {"posterior": value, "prior": prior, "constant": torch.zeros_like(value), "shuffled": shuffled}
        for name, latent in latents.items():
            self._count(model, texts, name, latent)
        kl = posterior.kl(model.prior(context, Latent(value)), Latent(value)).sum(-1) / math.log(2)
        self.kl.append(torch.where(real, kl, torch.nan).cpu())
        self._moments(posterior, real)
        if ablate:
            self._ablate(model, texts, value, prior)

    def _count(self, model: LatentDecoder, texts: Texts, name: str, latent: Tensor | None) -> float:
        """Add the nats of all targets under a latent."""
        nats, _ = path_likelihood(model, texts, None if latent is None else Latent(latent), greedy=False)
        self.nats[name] = self.nats.get(name, 0.0) - float(nats.sum())
        return -float(nats.sum())

    def _ablate(self, model: LatentDecoder, texts: Texts, value: Tensor, prior: Tensor) -> None:
        """Nats with one unit at a time from the prior."""
        units = value.shape[-1]
        self.ablated = self.ablated or [0.0] * units
        for unit in range(units):
            mixed = value.clone()
            mixed[..., unit] = prior[..., unit]
            nats, _ = path_likelihood(model, texts, Latent(mixed), greedy=False)
            self.ablated[unit] -= float(nats.sum())

    def _moments(self, posterior: Distribution, real: Tensor) -> None:
        """Posterior means, where the family has them, and what the mutual information needs, where it is known how."""
        mean = posterior.expected()
        if mean is None:
            return
        self.means.append(mean[real].double().cpu())
        if type(posterior) in _PARAMETERS:
            self.family = type(posterior)
            parameters = _PARAMETERS[self.family](posterior)
            self.parameters.append(tuple(parameter[real].double().cpu() for parameter in parameters))
        both = real[:, 1:] & real[:, :-1]
        self.neighbours.append((mean[:, :-1][both].double().cpu(), mean[:, 1:][both].double().cpu()))

    def result(self, has_latents: bool, seed: int) -> Diagnostics:
        """Everything, averaged."""
        cross_entropy = {name: nats / self.tokens for name, nats in self.nats.items()}
        if not has_latents:
            return Diagnostics(tokens=self.tokens, cross_entropy=cross_entropy)
        longest = max(part.shape[1] for part in self.kl)
        curves = [torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=torch.nan) for part in self.kl]
        kl = torch.cat(curves).double()  # (texts, S)
        ablation = [nats / self.tokens - cross_entropy["posterior"] for nats in self.ablated]
        if not self.means:
            return Diagnostics(
                self.tokens, float(kl.nansum()) / self.tokens, kl.nanmean(0).tolist(), cross_entropy, ablation=ablation
            )
        variances = torch.cat(self.means).var(0, unbiased=False)
        return Diagnostics(
            tokens=self.tokens,
            kl_bits_per_token=float(kl.nansum()) / self.tokens,
            kl_curve=kl.nanmean(0).tolist(),
            cross_entropy=cross_entropy,
            active_units=int((variances > ACTIVE_VARIANCE).sum()),
            variances=variances.tolist(),
            mutual_information_bits=None if self.family is None else _mutual_information(self.family, self._pool(), seed),
            persistence=_correlations(*(torch.cat(part) for part in zip(*self.neighbours, strict=True))),
            ablation=ablation,
        )

    def _pool(self) -> tuple[Tensor, ...]:
        """Parameters of at most `_POOL` posteriors, evenly spread over the data."""
        whole = tuple(torch.cat(parts) for parts in zip(*self.parameters, strict=True))
        stride = -(-len(whole[0]) // _POOL)
        return tuple(part[::stride] for part in whole)


def _mutual_information(family: type[Distribution], parameters: tuple[Tensor, ...], seed: int) -> float:
    """Mean of log2 q_i(z_i) / mean_j q_j(z_i) over pooled posteriors, z_i ~ q_i; bits."""
    count = len(parameters[0])
    noise = Noise.keyed(seed, [("mutual information", row) for row in range(count)])
    one = family(*(part[:, None] for part in parameters))  # type: ignore[call-arg]
    value = one.sample(noise).value.double()[:, 0]  # (N, E)
    if isinstance(one, Bits):
        (logits,) = parameters
        pairs = value @ logits.T - torch.nn.functional.softplus(logits).sum(-1)  # (N, N): log q_j(z_i)
    elif isinstance(one, Codes):
        pairs = one.log_probs[:, 0].T[one.index(value)]
    else:
        mean, log_std = parameters
        precision = torch.exp(-2 * log_std)
        squares = value.square() @ precision.T - 2 * value @ (mean * precision).T + (mean.square() * precision).sum(-1)
        pairs = -0.5 * squares - log_std.sum(-1)  # constants drop out
    gain = pairs.diagonal() - (pairs.logsumexp(-1) - math.log(count))
    return float(gain.mean()) / math.log(2)


def _correlations(first: Tensor, second: Tensor) -> list[float]:
    """Correlation of each column of (N, E) with its neighbour's; 0 where a unit does not move."""
    if len(first) < 2:
        return [0.0] * first.shape[-1]
    a, b = first - first.mean(0), second - second.mean(0)
    scale = (a.square().mean(0) * b.square().mean(0)).sqrt()
    return torch.where(scale > 1e-12, (a * b).mean(0) / scale.clamp(min=1e-12), 0.0).tolist()
