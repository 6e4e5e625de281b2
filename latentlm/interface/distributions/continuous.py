"""Diagonal Gaussians. KL in closed form, per dimension (Kingma & Welling 2014, appendix B, for the standard prior):

    KL(q || p) = log(std_p / std_q) + (std_q^2 + (mean_q - mean_p)^2) / (2 std_p^2) - 1/2

Legend: B rows, S sites, E dimensions. Nats.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from latentlm.interface.distributions.base import Distribution, Latent, sampled_kl, wide
from latentlm.interface.noise import Noise


class Gaussian(Distribution):
    """Independent normal dimensions."""

    parameters: ClassVar[tuple[str, ...]] = ("mean", "log_std")
    exact_kl = True

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        """mean and log_std (B, S, E)."""
        self.mean, self.log_std = wide(mean), wide(log_std)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S, E)."""
        rows, sites, events = self.mean.shape
        return rows, sites, events

    def sample(self, noise: Noise, *, differentiable: bool = False) -> Latent:
        """mean + std * epsilon, (B, S, E); reparameterised, so that gradients flow through the value."""
        rows, sites, events = self.shape
        assert len(noise) == rows, f"{len(noise)} rows of noise for {rows} rows"
        epsilon = noise.normal(sites, events, device=self.mean.device)
        value = self.mean + self.log_std.exp() * epsilon
        return Latent(value, self, noise) if differentiable else Latent(value.detach())

    def log_prob(self, latent: Latent) -> Tensor:
        """(B, S) nats."""
        scaled = (latent.value - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def kl(self, prior: Distribution, latent: Latent) -> Tensor:
        """(B, S, E) nats, exact; (B, S, 1), the one-sample estimate, against another kind of prior."""
        if not isinstance(prior, Gaussian):
            return sampled_kl(self, prior, latent)
        variance_ratio = torch.exp(2.0 * (self.log_std - prior.log_std))
        distance = (self.mean - prior.mean) * torch.exp(-prior.log_std)
        return prior.log_std - self.log_std + 0.5 * (variance_ratio + distance.square() - 1.0)

    def tempered(self, temperature: float) -> Gaussian:
        """Standard deviation times the temperature."""
        return Gaussian(self.mean, self.log_std + math.log(temperature))

    def expected(self) -> Tensor:
        """The means."""
        return self.mean

    def leaning(self, signs: Tensor, strength: float) -> Gaussian:
        """Means at `signs`, standard deviation 2.4 / strength (0.6 at the kit's 4)."""
        return Gaussian(signs, torch.full_like(signs, math.log(2.4 / strength)))
