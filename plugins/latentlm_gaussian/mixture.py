"""A mixture of K Gaussians of equal weight, the same at every site:

    p(z) = (1/K) sum_k N(z; mean_k, diag std_k^2)

KL(q || p) has no closed form; it is estimated at the sample of q (`sampled_kl`), as Tomczak & Welling do (arXiv 1705.07120).

Legend: B rows, S sites, K components, E dimensions. Nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentlm.interface import Distribution, Latent, Noise


class GaussianMixture(Distribution):
    """Equally weighted Gaussians shared by all sites."""

    parameters = ("places",)

    def __init__(self, mean: Tensor, log_std: Tensor, *, rows: int, sites: int) -> None:
        """mean and log_std (K, E); `rows` and `sites` are B and S."""
        self.mean = mean if mean.dtype == torch.float64 else mean.float()
        self.log_std = log_std if log_std.dtype == torch.float64 else log_std.float()
        self.places = self.mean.new_empty(rows, sites, 0)  # B and S, and nothing at each: that is what `select` picks from

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        return self.places.shape[0], self.places.shape[1], self.mean.shape[1]

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """(B, S, E): a component by the inverse CDF of one more uniform number, then mean + std * epsilon. Gradients reach the
        chosen component through the value; the weights are constants, so nothing is missing."""
        rows, sites, events = self.shape
        assert len(noise) == rows, f"{len(noise)} rows of noise for {rows} rows"
        count = self.mean.shape[0]
        uniform = noise.stream("component").uniform(sites, 1, device=self.mean.device)[..., 0]
        chosen = (uniform.double() * count).long()  # (B, S), below K since uniform < 1
        epsilon = noise.normal(sites, events, device=self.mean.device)
        value = self.mean[chosen] + self.log_std[chosen].exp() * epsilon
        return Latent(value, self, noise) if differentiable else Latent(value.detach())

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        scaled = (latent.value[..., None, :] - self.mean) * torch.exp(-self.log_std)  # (B, S, K, E)
        each = (-0.5 * scaled.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)
        return each.logsumexp(-1) - math.log(self.mean.shape[0])

    def tempered(self, temperature: float) -> GaussianMixture:
        """Each component's standard deviation times the temperature; the components' weights stay (our choice: the mixture to
        the power of 1/T is no mixture)."""
        rows, sites, _ = self.shape
        return GaussianMixture(self.mean, self.log_std + math.log(temperature), rows=rows, sites=sites)

    def expected(self) -> Tensor:
        """The mean of the means."""
        return self.mean.mean(0).expand(self.shape)
